-- wrk: POST the bodies of a file in turn; count every answer that is not 200. Prints one line of JSON at the end.
-- Environment: BENCHMARK_BODIES (one JSON body a line), BENCHMARK_TOKEN (may be empty).
local bodies, turn = {}, 0
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  failed = 0
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  local token = os.getenv("BENCHMARK_TOKEN")
  if token and token ~= "" then
    wrk.headers["Authorization"] = "Bearer " .. token
  end
  for line in io.lines(os.getenv("BENCHMARK_BODIES")) do
    -- Formatted once, so that the client costs next to nothing while it measures.
    table.insert(bodies, wrk.format("POST", nil, nil, line))
  end
end

function request()
  turn = turn % #bodies + 1
  return bodies[turn]
end

function response(status, headers, body)
  if status ~= 200 then
    failed = failed + 1
  end
end

function done(summary, latency, requests)
  local bad = 0
  for _, thread in ipairs(threads) do
    bad = bad + thread:get("failed")
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "failed": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f, "p95_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, bad, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(95) / 1000))
end
