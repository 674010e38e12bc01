-- For wrk: one line of plain numbers at the end and, when asked for by
-- `wrk ... URL -- delay LOW HIGH`, requests that tell the backend how long to take.

local low, high

function init(args)
   if args[1] == "delay" then
      low, high = tonumber(args[2]), tonumber(args[3])
      math.randomseed(1)
      function request()
         return wrk.format("GET", string.format("/?delay=%.3f", low + math.random() * (high - low)))
      end
   end
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format("result requests=%d us=%d status=%d connect=%d read=%d write=%d timeout=%d p99=%d max=%d\n",
      summary.requests, summary.duration, e.status, e.connect, e.read, e.write, e.timeout,
      latency:percentile(99), latency.max))
end
