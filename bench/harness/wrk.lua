-- Only the end of the run is scripted: a hook per response would make wrk the slow part.
done = function(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"micros":%d,"p50":%d,"p90":%d,"p99":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.status, summary.errors.timeout))
end
