-- Private keys that somebody has given another type go, and with them all that the nodes can tell
-- again: half of it would contradict the other half.
--
-- KEYS[1]  PREFIX:sync:epoch, which routes the script in a cluster
-- ARGV[1]  the prefix
-- Returns  JSON, `Mended` in mend.rs

local S = ARGV[1] .. ':sync:'
local call = redis.call
local kept = {
  epoch = 'string', wiped = 'string', version = 'string', floor = 'string',
  ['beat-seq'] = 'string', ['total-seq'] = 'string',
}
local told = {
  run = 'string', process = 'string', loss = 'string', lease = 'string', scanned = 'string', records = 'hash',
  index = 'zset', graves = 'zset', ['beat-index'] = 'zset', totals = 'hash',
  ['total-index'] = 'zset', nodes = 'zset', spaces = 'set',
}
local wrong = {}
local function is(name, kind)
  local found = call('TYPE', S .. name).ok
  if found == 'none' then return false end
  if found == kind then return true end
  wrong[#wrong + 1] = S .. name
  call('DEL', S .. name)
  return false
end
for name, kind in pairs(kept) do is(name, kind) end
for _, ns in ipairs(is('spaces', 'set') and call('SMEMBERS', S .. 'spaces') or {}) do
  told['meta:' .. ns], told['beat:' .. ns] = 'hash', 'hash'
end
for _, node in ipairs(is('nodes', 'zset') and call('ZRANGE', S .. 'nodes', 0, -1) or {}) do
  told['counts:' .. node] = 'hash'
end
for name, kind in pairs(told) do is(name, kind) end
if #wrong == 0 then return '{}' end
for name in pairs(told) do
  if name ~= 'spaces' then call('DEL', S .. name) end
end
return cjson.encode({ wrong = wrong })
