-- One exchange of a node with Redis: what is new there is told, what is new here is read.
-- Atomic, like every script; all keys stand under the prefix, and with a cluster in one slot.
--
-- KEYS[1]  PREFIX:sync:epoch, which routes the script in a cluster
-- ARGV[1]  JSON, `Request` in exchange.rs, which says what the fields mean
-- Returns  JSON, `Reply` there
--
-- Times are milliseconds since the epoch by Redis' clock, and all that comes from nodes is an age: no
-- node's clock has to be right.

local q = cjson.decode(ARGV[1])
local S = q.prefix .. ':sync:'
local call = redis.call
local clock = call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local out = { now = now }

local function int(n) return string.format('%.0f', n) end
local function seconds(ms) return string.format('%.3f', ms / 1000) end
-- What somebody else has spoilt must not stop everybody.
local function whole(text)
  local n = tonumber(text)
  return n and n >= 0 and n < 2 ^ 53 and math.floor(n) or 0
end
local function number(key) return whole(call('GET', S .. key)) end
local function identity(text)
  return text and #text == 16 and string.match(text, '^[0-9a-f]*[1-9a-f][0-9a-f]*$') or nil
end

-- Epoch and run ---------------------------------------------------------------
-- The epoch changes when everything is wiped on purpose, the run when Redis turns out to have lost
-- something. A node that does not know them reads everything before it tells anything.

local version, floor = number('version'), number('floor')
local run = identity(call('GET', S .. 'run'))
local epochs = call('GET', S .. 'epoch')
local head = epochs and identity(string.match(epochs, '^%S+'))

-- Another process has these data than had them last: Redis was started again, or a replica has taken
-- over. Something may be lost that no version shows, once others have written more. No connection
-- outlives that, so whoever has just connected looks. A user that may not run INFO does without.
local process
if q.connected or not run then
  local info = redis.pcall('INFO', 'server')
  process = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
end

local function public_key(ns, rest)
  return q.prefix .. ':' .. (ns == 'default' and '' or ns .. ':') .. rest
end

local function renew()
  run = q.new_run
  call('SET', S .. 'run', run)
  if process then call('SET', S .. 'process', process) end
  for _, node in ipairs(call('ZRANGE', S .. 'nodes', 0, -1)) do
    call('DEL', S .. 'counts:' .. node)
  end
  local totals = call('HGETALL', S .. 'totals')
  for i = 1, #totals, 2 do
    local ns, addr = string.match(totals[i], '^(%S+) (.+)$')
    -- One of another type is left alone.
    if ns then redis.pcall('ZADD', public_key(ns, 'servers:zset'), 'XX', 0, addr) end
  end
  call('DEL', S .. 'nodes', S .. 'totals', S .. 'total-index')
end

if not head then
  head = q.epoch ~= '' and q.epoch or q.new_epoch
  call('SET', S .. 'epoch', head)
  run = false
elseif q.epoch ~= '' and q.epoch ~= head then
  local replaced = string.find(epochs .. ' ', ' ' .. q.epoch .. ' ', 1, true)
  out.state = replaced and 'wiped' or 'foreign'
  out.epoch = head
  out.wiped_age = math.max(0, now - number('wiped'))
  return cjson.encode(out)
end
local lost = q.run ~= '' and (not run or version < q.cursor)
local behind = q.cursor > 0 and q.cursor < floor
local moved = run and process and call('GET', S .. 'process') ~= process
if not run or moved or (lost and run == q.run) then renew() end
if lost then call('SET', S .. 'loss', run) end
if run ~= q.run then
  if version < q.cursor then call('SET', S .. 'version', int(q.cursor)) end
  for _, ns in ipairs(q.spaces or {}) do call('SADD', S .. 'spaces', ns) end
  out.state = 'run'
  out.lost = (q.run ~= '' and call('GET', S .. 'loss') == run) or nil
  out.behind = behind or nil
  out.epoch, out.run, out.floor = head, run, floor
  return cjson.encode(out)
end
if behind and not q.snapshot then
  out.state = 'behind'
  return cjson.encode(out)
end
-- A command that lay in a buffer while Redis hung is not what its node says now.
if q.deadline and now > q.deadline then
  out.state = 'late'
  return cjson.encode(out)
end

-- The public keys ---------------------------------------------------------------
-- One that is of another type is left alone.

local usable, wrong = {}, {}
local function public(ns, rest, kind)
  local key = public_key(ns, rest)
  local known = usable[key]
  if known == nil then
    local is = call('TYPE', key).ok
    known = (is == 'none' or is == kind) and key
    usable[key] = known
    if not known then
      wrong[#wrong + 1] = key
      wrong[#wrong + 1] = kind
    end
  end
  return known
end
local function zset(ns) return public(ns, 'servers:zset', 'zset') end
local function metas(ns) return public(ns, 'servers:meta', 'hash') end
local function beats(ns) return public(ns, 'heartbeat', 'hash') end

-- Records -----------------------------------------------------------------------
-- a: last registration; x: removal, of one that is gone; c: first registration; w, m, d, r: weight,
-- max_conns, disabled, draining; wt, mt, st: when these were set; dt: when it was disabled; g: its other
-- settings, those that are not the default, by their public names; gt: when these were set. A node that knows
-- nothing of settings makes records without both, and leaves them in others.

local NUMBERS = { 'v', 'a', 'c', 'p', 'w', 'wt', 'm', 'mt', 'd', 'r', 'st', 'dt' }
local beat_seq, total_seq = number('beat-seq'), number('total-seq')
local first_version, first_beat, first_total = version, beat_seq, total_seq

local function record(m)
  local text = call('HGET', S .. 'records', m)
  if not text then return nil end
  local fine, r = pcall(cjson.decode, text)
  if not fine or type(r) ~= 'table' then return nil end
  for _, field in ipairs(r.x and { 'v', 'a', 'x' } or NUMBERS) do
    if type(r[field]) ~= 'number' then return nil end
    -- The clock has gone back, or another Redis, with another clock, has taken over. How long ago
    -- it was is not known: what is said now is later.
    if field ~= 'v' and r[field] > now + 1000 then r[field] = now - 60000 end
  end
  if type(r.gt) ~= 'number' or type(r.g) ~= 'table' then r.g = nil end
  if type(r.gt) ~= 'number' then r.gt = nil
  elseif r.gt > now + 1000 then r.gt = now - 60000 end
  return r
end

local function same(a, b)
  if type(a) ~= 'table' or type(b) ~= 'table' then return a == b end
  for name, value in pairs(a) do if b[name] ~= value then return false end end
  for name in pairs(b) do if a[name] == nil then return false end end
  return true
end

local function keep(m, r) call('HSET', S .. 'records', m, cjson.encode(r)) end

local function save(m, r)
  version = version + 1
  r.v = version
  keep(m, r)
  call('ZADD', S .. 'index', int(version), m)
end

local SETTINGS = {
  'max_fails', 'fail_timeout', 'slow_start', 'connect_timeout', 'send_timeout', 'read_timeout', 'health_path',
}
local OURS = ' host port weight max_conns enabled created_at updated_at disabled_at disabled_reason '
  .. table.concat(SETTINGS, ' ') .. ' '

-- Shadows are what was written to a public key last: what differs from them was written by others.
local function put_meta(ns, addr, r, heard)
  local key = metas(ns)
  local meta = {}
  local old = key and call('HGET', key, addr)
  if old then
    -- What others keep there stays.
    local fine, was = pcall(cjson.decode, old)
    if fine and type(was) == 'table' then meta = was end
  end
  meta.host, meta.port = r.h, r.p
  meta.weight, meta.max_conns = r.w, r.m
  meta.enabled = r.d == 0
  meta.created_at = r.c / 1000
  for _, name in ipairs(SETTINGS) do meta[name] = r.g and r.g[name] end
  meta.updated_at = math.max(r.a, r.wt, r.mt, r.st, r.gt or 0) / 1000
  meta.disabled_at = r.d ~= 0 and r.dt / 1000 or nil
  meta.disabled_reason = r.d ~= 0 and 'manual' or nil
  if heard then meta.last_heartbeat = heard / 1000 end
  local fine, text = pcall(cjson.encode, meta)
  if not fine then
    -- Something of others' that has no form in JSON, like a number too large.
    for field in pairs(meta) do
      if not string.find(OURS, ' ' .. field .. ' ', 1, true) then meta[field] = nil end
    end
    text = cjson.encode(meta)
  end
  if key then call('HSET', key, addr, text) end
  call('HSET', S .. 'meta:' .. ns, addr, text)
end

-- A shadow of a sign of life is the value, a bar, and the time that it counts as.
local function heard_at(ns, addr)
  local shadow = call('HGET', S .. 'beat:' .. ns, addr)
  return shadow and tonumber(string.match(shadow, '|(%d+)$'))
end

local function note_beat(ns, addr, m, value, at)
  call('HSET', S .. 'beat:' .. ns, addr, value .. '|' .. int(at))
  beat_seq = beat_seq + 1
  call('ZADD', S .. 'beat-index', int(beat_seq), m)
end

local function put_beat(ns, addr, m, at, weak)
  at = math.min(at, now)
  local had = heard_at(ns, addr)
  -- One of a clock that was ahead says nothing any more.
  if had and had <= now + 1000 and (weak or at <= had) then return had end
  local value = seconds(at)
  local key = beats(ns)
  if key then call('HSET', key, addr, value) end
  note_beat(ns, addr, m, value, at)
  return at
end

-- The time of the last sign of life stands in the JSON too; to decode and encode it each time would
-- be most of what a sign of life costs.
local function beat_meta(ns, addr, at)
  local shadow = call('HGET', S .. 'meta:' .. ns, addr)
  local key = metas(ns)
  if not shadow or not key or call('HGET', key, addr) ~= shadow then return end
  local text, n = string.gsub(shadow, '"last_heartbeat":[%d%.eE+-]+', '"last_heartbeat":' .. seconds(at), 1)
  if n == 1 and text ~= shadow then
    call('HSET', key, addr, text)
    call('HSET', S .. 'meta:' .. ns, addr, text)
  end
end

-- What people read of the sum of all nodes' means: whole requests.
local function put_score(ns, addr, total)
  if zset(ns) then call('ZADD', zset(ns), int(math.floor(total / 1000 + 0.5)), addr) end
end

local function set_total(m, add)
  if add == 0 then return end
  local total = math.max(0, whole(call('HGET', S .. 'totals', m)) + add)
  total_seq = total_seq + 1
  if total == 0 then
    call('HDEL', S .. 'totals', m)
  else
    call('HSET', S .. 'totals', m, int(total))
  end
  call('ZADD', S .. 'total-index', int(total_seq), m)
  local ns, addr = string.match(m, '^(%S+) (.+)$')
  if ns and call('HEXISTS', S .. 'meta:' .. ns, addr) == 1 then put_score(ns, addr, total) end
end

local function bury_server(ns, addr, m, r, at)
  save(m, { a = r.a, x = at })
  call('ZADD', S .. 'graves', int(now), m)
  if metas(ns) then call('HDEL', metas(ns), addr) end
  if beats(ns) then call('HDEL', beats(ns), addr) end
  if zset(ns) then call('ZREM', zset(ns), addr) end
  call('HDEL', S .. 'meta:' .. ns, addr)
  call('HDEL', S .. 'beat:' .. ns, addr)
  call('ZREM', S .. 'beat-index', m)
  for _, node in ipairs(call('ZRANGE', S .. 'nodes', 0, -1)) do
    call('HDEL', S .. 'counts:' .. node, m)
  end
  call('HDEL', S .. 'totals', m)
  call('ZREM', S .. 'total-index', m)
end

-- What nodes tell ----------------------------------------------------------------

-- With each comes the record's version, but with REMOVED how long ago that was.
local DONE, UNKNOWN, REMOVED, ALIVE = 1, 0, 2, 3
local fixes = {}
-- Ages that are told at different times differ by so many milliseconds from what they are. What is as
-- close together as that is taken in the order in which it is told.
local ALIKE = 10
-- When it was told: ages count from then.
local told = math.min(now, q.sent or now)

local function live(ns, addr) return call('HEXISTS', S .. 'meta:' .. ns, addr) == 1 end

local function change(o)
  local ns, addr = o.n, o.a
  local m = ns .. ' ' .. addr
  if o.seen then
    -- Read from the public key, which may have changed since.
    local key = metas(ns)
    if not key or call('HGET', key, addr) ~= o.seen then return DONE, 0 end
  end
  local r = record(m)
  local added = o.add and told - o.add
  if o.g and not next(o.g) then o.g = nil end
  if r and r.x then
    if not added or added < r.x - ALIKE then return REMOVED, math.max(0, now - r.x) end
    added = math.max(added, r.x)
    call('ZREM', S .. 'graves', m)
    r = nil
  end
  if not r then
    if not added then return UNKNOWN, 0 end
    local old = o.old or { o.add, o.add, o.add, o.add }
    r = {
      a = added, c = told - math.max(o.created, o.add), h = o.h, p = o.p,
      w = o.w, wt = told - (o.wa or old[1]), m = o.m, mt = told - (o.ma or old[2]),
      d = o.d, r = o.r, st = told - (o.sa or old[3]), dt = told - o.da,
      g = o.g, gt = told - (o.ga or old[4]),
    }
    save(m, r)
    -- Nodes that never lost it find that their requests on it are not counted any more.
    total_seq = total_seq + 1
    call('ZADD', S .. 'total-index', int(total_seq), m)
    call('SADD', S .. 'spaces', ns)
    local heard = put_beat(ns, addr, m, told - o.hb, o.weak)
    put_meta(ns, addr, r, heard)
    put_score(ns, addr, whole(call('HGET', S .. 'totals', m)))
    return DONE, version
  end

  local changed, newer, refused = o.seen ~= nil or not live(ns, addr), false, false
  if added and added > r.a then r.a, newer = added, true end
  local function part(age, time, ...)
    if not age then return end
    local at = told - age
    local later = at >= (r[time] or 0)
    if later then r[time], newer = at, true end
    for _, field in ipairs({ ... }) do
      if not same(r[field], o[field]) then
        if later then r[field], changed = o[field], true else refused = true end
      end
    end
    return later
  end
  part(o.wa, 'wt', 'w')
  part(o.ma, 'mt', 'm')
  part(o.ga, 'gt', 'g')
  if part(o.sa, 'st', 'd', 'r') then r.dt = told - o.da end
  local heard = put_beat(ns, addr, m, told - o.hb, o.weak)
  if changed then
    save(m, r)
    put_meta(ns, addr, r, heard)
  else
    if newer then keep(m, r) end
    beat_meta(ns, addr, heard)
  end
  if refused then fixes[#fixes + 1] = m end
  return DONE, r.v
end

local function absent(m)
  local r = record(m)
  if r and r.x then return REMOVED, math.max(0, now - r.x) end
  return UNKNOWN, 0
end

local function beat(o)
  local m = o.n .. ' ' .. o.a
  if not live(o.n, o.a) then return absent(m) end
  local had = heard_at(o.n, o.a)
  local at = put_beat(o.n, o.a, m, told - o.hb)
  if at ~= had then beat_meta(o.n, o.a, at) end
  return DONE, 0
end

-- Another program wrote a sign of life: its value has changed, so it was just now, whatever that
-- program's clock says. Of a server just registered it may be an old one.
local function foreign_beat(o)
  local m = o.n .. ' ' .. o.a
  local key = beats(o.n)
  if not key or call('HGET', key, o.a) ~= o.seen or not live(o.n, o.a) then return DONE, 0 end
  note_beat(o.n, o.a, m, o.seen, now)
  beat_meta(o.n, o.a, now)
  return DONE, 0
end

local function remove(o)
  local m = o.n .. ' ' .. o.a
  local r = record(m)
  local at = told - o.ra
  if r and r.x then
    -- It may have been there in between, and Redis has lost that.
    if at > r.x then
      r.x = at
      keep(m, r)
    end
    return DONE, r.v
  end
  if not r then
    -- Redis has lost it. Another node may not have heard of the removal, and bring the server back.
    r = { a = 0 }
  elseif at < r.a + (o.again and ALIKE or -ALIKE) then
    -- Registered again since. Where Redis has lost the order of what was close together, and this is the
    -- memory of it that some node has, the server stays: it may go later, but nobody would bring it back.
    fixes[#fixes + 1] = m
    return DONE, r.v
  end
  bury_server(o.n, o.a, m, r, at)
  return DONE, version
end

local function forget(o)
  local m = o.n .. ' ' .. o.a
  if not live(o.n, o.a) then return absent(m) end
  local had = heard_at(o.n, o.a)
  if had and had > told - o.hb + 500 then return ALIVE, 0 end
  bury_server(o.n, o.a, m, record(m) or { a = 0 }, now)
  return DONE, version
end

-- Another program has removed it from the public keys, or lost all of them.
local function foreign_loss(o)
  local m = o.n .. ' ' .. o.a
  local key = metas(o.n)
  local r = record(m)
  if not key or not r or r.x or call('HEXISTS', key, o.a) == 1 then return DONE, 0 end
  if o.kind == 'gone' then
    bury_server(o.n, o.a, m, r, now)
    return DONE, version
  end
  local heard = heard_at(o.n, o.a) or now
  put_meta(o.n, o.a, r, heard)
  if beats(o.n) then
    call('HSET', beats(o.n), o.a, seconds(heard))
    note_beat(o.n, o.a, m, seconds(heard), heard)
  end
  put_score(o.n, o.a, whole(call('HGET', S .. 'totals', m)))
  return DONE, r.v
end

local kinds = {
  change = change, beat = beat, remove = remove, forget = forget,
  ['foreign-beat'] = foreign_beat, gone = foreign_loss, lost = foreign_loss,
}
local results = {}
for _, o in ipairs(q.news or {}) do
  local what, v = kinds[o.kind](o)
  results[#results + 1] = what
  results[#results + 1] = v
end
if #results > 0 then out.results = results end

-- Counts --------------------------------------------------------------------------

if q.node then
  local counts = S .. 'counts:' .. q.node
  local known = call('ZSCORE', S .. 'nodes', q.node)
  if not known and not q.reset then out.unknown = true end
  call('ZADD', S .. 'nodes', int(now), q.node)
  local function take_back()
    local all = call('HGETALL', counts)
    for i = 1, #all, 2 do set_total(all[i], -whole(all[i + 1])) end
    call('DEL', counts)
  end
  if q.reset then take_back() end
  for i = 1, #(q.counts or {}), 2 do
    local m, mean = q.counts[i], q.counts[i + 1]
    local text = call('HGET', S .. 'records', m)
    if not (text and string.find(text, '"x":', 1, true)) then
      local old = whole(call('HGET', counts, m))
      if mean == 0 then call('HDEL', counts, m) else call('HSET', counts, m, int(mean)) end
      set_total(m, mean - old)
    end
  end

  -- Nodes that have not been heard of have nothing on servers any more. One that was buried too
  -- soon finds itself unknown and tells its counts again.
  for _, node in ipairs(call('ZRANGEBYSCORE', S .. 'nodes', int(now + 60000), '+inf')) do
    call('ZADD', S .. 'nodes', int(now), node)
  end
  for _, node in ipairs(call('ZRANGEBYSCORE', S .. 'nodes', '-inf', int(now - q.node_ttl), 'LIMIT', 0, 4)) do
    local left = call('HSCAN', S .. 'counts:' .. node, 0, 'COUNT', 1000)[2]
    for i = 1, #left, 2 do
      set_total(left[i], -whole(left[i + 1]))
      call('HDEL', S .. 'counts:' .. node, left[i])
    end
    if call('EXISTS', S .. 'counts:' .. node) == 0 then call('ZREM', S .. 'nodes', node) end
    out.buried = true
  end
  if q.leaving then
    take_back()
    call('ZREM', S .. 'nodes', q.node)
    out.buried = true
  end
  out.nodes = call('ZCARD', S .. 'nodes')
  if q.scanned then
    local first = call('GET', S .. 'scanned') ~= run
    call('SET', S .. 'scanned', run)
    -- After a wipe the others wait for this.
    if first then call('PUBLISH', S .. 'changes', q.node) end
  end
  out.scanned = call('GET', S .. 'scanned') == run

  -- One node looks for what other programs have written, and clears old graves away.
  local holder = call('GET', S .. 'lease')
  local held = holder and holder ~= q.node and call('ZSCORE', S .. 'nodes', holder)
  if not held and not q.leaving then
    call('SET', S .. 'lease', q.node, 'PX', int(q.node_ttl))
    out.lease = true
    local old = call('ZRANGEBYSCORE', S .. 'graves', '-inf', int(now - q.tombstone_ttl), 'LIMIT', 0, 100)
    for _, m in ipairs(old) do
      local r = record(m)
      if r and r.x then
        floor = math.max(floor, r.v)
        call('HDEL', S .. 'records', m)
        call('ZREM', S .. 'index', m)
      end
      call('ZREM', S .. 'graves', m)
    end
    if #old > 0 then call('SET', S .. 'floor', int(floor)) end
  end
end

if version ~= first_version then call('SET', S .. 'version', int(version)) end
if beat_seq ~= first_beat then call('SET', S .. 'beat-seq', int(beat_seq)) end
if total_seq ~= first_total then call('SET', S .. 'total-seq', int(total_seq)) end
if version ~= first_version or beat_seq ~= first_beat or out.buried then
  call('PUBLISH', S .. 'changes', q.node or '')
end

-- What is new here -----------------------------------------------------------------

local function list_of(members, into)
  if #members == 0 then return into end
  local texts = call('HMGET', S .. 'records', unpack(members))
  for i, m in ipairs(members) do
    if texts[i] then
      local ns, addr = string.match(m, '^(%S+) (.+)$')
      local heard = ns and heard_at(ns, addr)
      into[#into + 1] = m
      into[#into + 1] = texts[i]
      into[#into + 1] = heard and math.max(0, now - heard) or -1
    end
  end
  return into
end

-- The members of an index after a cursor, and the cursor after them.
local function after(index, cursor, last, most)
  local found = call('ZRANGEBYSCORE', S .. index, '(' .. int(cursor), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  local members = {}
  for i = 1, #found, 2 do members[#members + 1] = found[i] end
  if #members < most then return members, last, false end
  return members, tonumber(found[#found]), true
end

if q.most_records > 0 then
  local members, more
  members, out.cursor, more = after('index', q.cursor, version, q.most_records)
  out.more = more or nil
  local records = list_of(fixes, {})
  records = list_of(members, records)
  if #records > 0 then out.records = records end

  if q.beat_cursor > beat_seq then q.beat_cursor = 0 end
  members, out.beat_cursor, more = after('beat-index', q.beat_cursor, beat_seq, q.most_beats)
  out.more_beats = more or nil
  local heard = {}
  for _, m in ipairs(members) do
    local ns, addr = string.match(m, '^(%S+) (.+)$')
    local at = ns and heard_at(ns, addr)
    if at then
      heard[#heard + 1] = m
      heard[#heard + 1] = math.max(0, now - at)
    end
  end
  if #heard > 0 then out.beats = heard end

  if q.total_cursor > total_seq then q.total_cursor = 0 end
  members, out.total_cursor, more = after('total-index', q.total_cursor, total_seq, q.most_beats)
  out.more_totals = more or nil
  if #members > 0 then
    local sums = call('HMGET', S .. 'totals', unpack(members))
    local mine = q.node and call('HMGET', S .. 'counts:' .. q.node, unpack(members)) or {}
    local totals = {}
    for i, m in ipairs(members) do
      totals[#totals + 1] = m
      totals[#totals + 1] = whole(sums[i])
      totals[#totals + 1] = whole(mine[i])
    end
    out.totals = totals
  end
end
if #wrong > 0 then out.wrong = wrong end
return cjson.encode(out)
