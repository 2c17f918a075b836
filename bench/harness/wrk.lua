-- After the URL: bytes of a body to POST, and over how many routes to spread requests; 0 is neither.
init = function(args)
  local post, routes = tonumber(args[1]), tonumber(args[2])
  if post > 0 then
    wrk.method = "POST"
    wrk.body = string.rep("x", post)
  end
  if routes > 0 then
    local requests, next = {}, 0
    for number = 0, routes - 1 do
      requests[number] = wrk.format(nil, string.format("/api/%04d/reviews/1", number))
    end
    request = function()
      -- A stride that has no divisor in common with the count meets every route, and not in order.
      next = (next + 1237) % routes
      return requests[next]
    end
  end
end

-- Only the end of the run is scripted: a hook per response would make wrk the slow part.
done = function(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"micros":%d,"p50":%d,"p90":%d,"p99":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.status, summary.errors.timeout))
end
