-- Requests to all routes in turn, at a pace: each connection waits between two. Arguments: hosts or paths, how many
-- routes, milliseconds between two requests of a connection.
local shape, routes, wait, at = nil, 0, 0, 0

function init(args)
  shape, routes, wait = args[1], tonumber(args[2]), tonumber(args[3])
end

function delay()
  return wait
end

function request()
  at = (at + 7919) % routes
  if shape == "hosts" then
    return wrk.format("GET", "/api", { ["Host"] = "r" .. at .. ".bench.example" })
  end
  return wrk.format("GET", "/r" .. at .. "/api", { ["Host"] = "bench.example" })
end

done = function(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"micros":%d,"p50":%d,"p99":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.status, summary.errors.timeout))
end
