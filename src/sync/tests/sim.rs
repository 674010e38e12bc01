//! Nodes without nginx: each a zone of its own and the part of a worker that talks to Redis, all in
//! the thread of the test, with clocks of their own and a cable that can be pulled.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use super::super::given::{self, Fields};
use super::*;
use crate::balance::LeastConn;
use crate::registry::{
    Address, Choice, Cursor, Error, Events, Flight, Now, OnDuplicate, OnExpire, Registration,
    Registry, Rules, ServerView, SpaceName, Sweep, Target, Verdict, Worker,
};
use crate::shm::Zone;
use crate::shm::testing::zone;

/// `redis_interval` and `redis_timeout` of the nodes, in milliseconds.
pub(super) const INTERVAL: u64 = 100;
pub(super) const TIMEOUT: u64 = 400;

pub(super) const RULES: Rules = Rules {
    ttl: 0,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

/// What becomes of a node's jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cable {
    /// They are done.
    Fine,
    /// They do not come there.
    Cut,
    /// They are done, but the answer is lost.
    Deaf,
}

/// Where a namespace's name and a port of 10.0.0.1 say which server it is.
pub(super) type Key = (&'static str, u16);

/// What all nodes must agree on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) weight: u32,
    pub(super) max_conns: u32,
    pub(super) enabled: bool,
    pub(super) draining: bool,
    /// What else registrations said, but for defaults.
    pub(super) settings: Fields,
}

pub(super) fn address(port: u16) -> Address {
    Address::Inet(Ipv4Addr::new(10, 0, 0, 1).into(), port)
}

pub(super) fn space(name: &str) -> SpaceName<'_> {
    SpaceName::new(name.as_bytes()).unwrap()
}

/// One node.
pub(super) struct Member {
    pub(super) zone: &'static Zone,
    pub(super) node: Node,
    pub(super) courier: Courier,
    pub(super) rules: Rules,
    pub(super) cable: Cable,
    /// Its steps are not made: it hangs, or is dead.
    pub(super) halted: bool,
    pub(super) settings: Settings,
    pub(super) lines: Vec<(Level, String)>,
    pub(super) worker: Worker,
    pub(super) events: Events,
    endpoint: Endpoint,
    began: Instant,
    /// Its clocks: what they are ahead, in milliseconds.
    mono_ahead: u64,
    wall_ahead: i64,
    wake: u64,
    /// It has been told that there is something new.
    hinted: bool,
}

impl Member {
    fn new(endpoint: Endpoint, settings: Settings, mono_ahead: u64, wall_ahead: i64) -> Self {
        let zone = zone(1 << 20);
        let mut registry = Registry::lock(zone).unwrap();
        registry.share(true);
        let worker = registry.join(1);
        let instance = registry.instance();
        drop(registry);
        let timeout = Duration::from_millis(settings.timeout);
        Self {
            zone,
            node: Node::new(settings.clone(), Vec::new(), instance),
            courier: Courier::new(endpoint.clone(), timeout, Stop::new()),
            rules: RULES,
            cable: Cable::Fine,
            halted: false,
            settings,
            lines: Vec::new(),
            worker,
            events: Events::default(),
            endpoint,
            began: Instant::now(),
            mono_ahead,
            wall_ahead,
            wake: 0,
            hinted: false,
        }
    }

    pub(super) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        Now {
            mono: self.mono_ahead + self.began.elapsed().as_millis() as u64,
            wall: wall.saturating_add_signed(self.wall_ahead),
        }
    }

    pub(super) fn registry(&self) -> Registry<'static> {
        Registry::lock(self.zone).unwrap()
    }

    /// The worker that talks dies, and another takes over.
    pub(super) fn restart(&mut self) {
        let instance = self.registry().instance();
        self.node = Node::new(self.settings.clone(), Vec::new(), instance);
        let timeout = Duration::from_millis(self.settings.timeout);
        self.courier = Courier::new(self.endpoint.clone(), timeout, Stop::new());
        self.wake = 0;
    }

    /// Goes on until there is nothing to be done for now. Whether it has told what others hear of.
    pub(super) fn step(&mut self) -> bool {
        if self.halted {
            return false;
        }
        let queued = self.registry().queued();
        if std::mem::take(&mut self.hinted) {
            self.node.hint();
        } else if self.now().mono < self.wake && queued == 0 {
            return false;
        }
        let mut told = false;
        for _ in 0..2000 {
            let next = self.node.step(self.zone, &self.rules, self.now());
            let mut waits = None;
            match next {
                Next::Send(job) => {
                    let cut = |why: &str| Report { outcome: Err(why.into()), warnings: Vec::new() };
                    let report = match self.cable {
                        Cable::Fine => self.courier.work(job),
                        Cable::Cut => cut("it is cut off"),
                        Cable::Deaf => {
                            let _ = self.courier.work(job);
                            cut("the answer was lost")
                        }
                    };
                    told |= self.cable != Cable::Cut && queued > 0;
                    self.node.reported(report, self.zone, self.now());
                }
                Next::Again => {}
                Next::Wait(ms) => waits = Some(ms),
            }
            let lines: Vec<_> = self.node.lines().collect();
            self.lines.extend(lines);
            self.node.events.drain().for_each(drop);
            self.events.drain().for_each(drop);
            if let Some(ms) = waits {
                self.wake = self.now().mono + ms;
                return told;
            }
        }
        panic!("{} never rests", self.node.id());
    }

    /// Lines of that level that have these words in them.
    pub(super) fn said(&self, level: Level, words: &str) -> usize {
        self.lines.iter().filter(|(l, line)| *l == level && line.contains(words)).count()
    }

    pub(super) fn queued(&self) -> usize {
        self.registry().queued()
    }

    // What clients call.

    pub(super) fn add(&mut self, key: Key, weight: Option<u32>, max_conns: Option<u32>) {
        self.try_add(key, weight, max_conns).unwrap();
    }

    pub(super) fn try_add(
        &mut self,
        (name, port): Key,
        weight: Option<u32>,
        max_conns: Option<u32>,
    ) -> Result<(), Error> {
        let registration = Registration { weight, max_conns, ..Registration::of(address(port)) };
        self.register(name, &registration)
    }

    pub(super) fn register(&mut self, name: &str, said: &Registration) -> Result<(), Error> {
        let (rules, now) = (self.rules, self.now());
        let mut registry = self.registry();
        registry.add(space(name), said, &rules, now, &mut self.events).map(drop)
    }

    pub(super) fn remove(&mut self, (name, port): Key) -> bool {
        let (mut registry, now) = (self.registry(), self.now());
        let found = registry.find_space(space(name));
        registry.remove(found, &address(port), now, &mut self.events).is_ok()
    }

    pub(super) fn refresh(&mut self, (name, port): Key) -> bool {
        let (mut registry, now) = (self.registry(), self.now());
        let found = registry.find_space(space(name));
        registry.refresh(found, &address(port), now, &mut self.events).is_ok()
    }

    pub(super) fn toggle(&mut self, (name, port): Key, enable: bool) -> bool {
        let (mut registry, now) = (self.registry(), self.now());
        let found = registry.find_space(space(name));
        registry.toggle(found, &address(port), enable, now, &mut self.events).is_ok()
    }

    pub(super) fn drain(&mut self, (name, port): Key) -> bool {
        let (mut registry, now) = (self.registry(), self.now());
        let found = registry.find_space(space(name));
        registry.drain(found, &address(port), now, &mut self.events).is_ok()
    }

    pub(super) fn set_weight(&mut self, (name, port): Key, weight: u32) -> bool {
        let (mut registry, now) = (self.registry(), self.now());
        let found = registry.find_space(space(name));
        registry.set_weight(found, &address(port), weight, now).is_ok()
    }

    pub(super) fn sweep(&mut self) {
        let mut sweep = Sweep::default();
        while !sweep.done {
            let (rules, now) = (self.rules, self.now());
            self.registry().sweep(&mut sweep, 16, &rules, now, &mut self.events);
        }
    }

    /// A request to the server with the least of them.
    pub(super) fn take(&mut self, name: &str) -> Option<(Flight, u16)> {
        let mut registry = Registry::lock(self.zone).unwrap();
        let space = registry.find_space(space(name))?;
        let policy = &LeastConn;
        let choice = Choice { space, policy, tried: &[], warm: &[], seed: None, again: None };
        let mut target = Target::NONE;
        let (rules, now) = (self.rules, self.now());
        let events = &mut self.events;
        let taken = registry.take(&mut self.worker, &choice, &rules, now, &mut target, events);
        taken.ok().map(|(flight, _)| (flight, target.port))
    }

    pub(super) fn release(&mut self, flight: Flight) {
        let now = self.now();
        let mut registry = Registry::lock(self.zone).unwrap();
        registry.release(&mut self.worker, flight, Verdict::Fine, now);
    }

    // What it knows.

    pub(super) fn views(&self, name: &str) -> Vec<ServerView> {
        let mut views = Vec::new();
        let Some(found) = self.registry().find_space(space(name)) else { return views };
        let (mut cursor, now) = (Cursor::START, self.now());
        while !cursor.done {
            self.registry().read(found, &mut cursor, 64, &self.rules, now, &mut views);
        }
        views
    }

    pub(super) fn view(&self, (name, port): Key) -> Option<ServerView> {
        self.views(name).into_iter().find(|v| v.port == port)
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.view(key).is_some()
    }

    /// The settings of all servers that are there.
    fn settings(&self) -> BTreeMap<(String, String), Fields> {
        let (registry, mut copies) = (self.registry(), Vec::new());
        registry.copy(&mut registry.snapshot(), u32::MAX, &mut copies);
        drop(registry);
        let saved = copies.iter().map(|copied| copied.saved(self.now()));
        let there = saved.filter(|saved| saved.removed_at == 0);
        there.map(|s| ((s.namespace, s.address.to_string()), given::write(&s.settings))).collect()
    }

    /// All servers.
    pub(super) fn shown(&self) -> BTreeMap<(String, String), Shown> {
        let (mut all, mut settings) = (BTreeMap::new(), self.settings());
        let names: Vec<String> = self.registry().space_names().map(str::to_owned).collect();
        for name in names {
            for v in self.views(&name) {
                let draining = v.state == crate::registry::State::Draining;
                let (weight, max_conns, enabled) = (v.weight, v.max_conns, v.enabled);
                let key = (name.clone(), v.addr().to_owned());
                let settings = settings.remove(&key).unwrap();
                all.insert(key, Shown { weight, max_conns, enabled, draining, settings });
            }
        }
        all
    }
}

/// Nodes and their Redis.
pub(super) struct Sim {
    pub(super) redis: Server,
    pub(super) nodes: Vec<Member>,
    pub(super) prefix: String,
    link: Option<Link>,
}

impl Sim {
    pub(super) fn new(n: usize) -> Self {
        Self::with(Server::start(&[]), "upstream", n, |_| {})
    }

    pub(super) fn with(
        redis: Server,
        prefix: &str,
        n: usize,
        adapt: impl Fn(&mut Settings),
    ) -> Self {
        let url = redis.url();
        Self::build(&url, redis, prefix, n, adapt)
    }

    /// Nodes that go to Redis by another URL than the test does.
    pub(super) fn at(url: &str, redis: Server, n: usize) -> Self {
        Self::build(url, redis, "upstream", n, |_| {})
    }

    fn build(
        url: &str,
        redis: Server,
        prefix: &str,
        n: usize,
        adapt: impl Fn(&mut Settings),
    ) -> Self {
        let mut nodes = Vec::new();
        for i in 0..n {
            let endpoint = Endpoint::parse(url).unwrap();
            let mut settings = Settings {
                prefix: prefix.to_owned(),
                name: format!("n{i}"),
                interval: INTERVAL,
                timeout: TIMEOUT,
                tombstone_ttl: 86_400_000,
                spaces: vec!["default".to_owned()],
                redis: endpoint.to_string(),
            };
            adapt(&mut settings);
            // Booted at different times; the second one's wall clock is an hour late.
            let wall_ahead = [0, -3_600_000, 7000][i % 3];
            nodes.push(Member::new(endpoint, settings, 1_000_000 * (i as u64 + 1), wall_ahead));
        }
        Self { redis, nodes, prefix: prefix.to_owned(), link: None }
    }

    /// Every node looks whether there is something to be done, and does it.
    pub(super) fn step(&mut self) {
        for i in 0..self.nodes.len() {
            if self.nodes[i].step() {
                for (j, other) in self.nodes.iter_mut().enumerate() {
                    if j != i && other.cable == Cable::Fine {
                        other.hinted = true;
                    }
                }
            }
        }
    }

    pub(super) fn run(&mut self, ms: u64) {
        let end = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < end {
            self.step();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(15);
        while !is_so(self) {
            assert!(Instant::now() < end, "waited in vain: {what}\n{}", self.told());
            self.step();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Cuts every node, or makes every cable whole.
    pub(super) fn all(&mut self, cable: Cable) {
        self.nodes.iter_mut().for_each(|node| node.cable = cable);
    }

    /// Everybody can talk again, and does until all are quiet.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        self.all(Cable::Fine);
        self.until("all is told", |sim| sim.is_quiet());
        // What is wrong may show only after the next exchange, or the next look at public keys.
        self.run(2 * INTERVAL + 20);
        self.until("all is told", |sim| sim.is_quiet());
    }

    fn is_quiet(&mut self) -> bool {
        let Ok(dump) = self.try_dump() else { return false };
        self.nodes.iter().filter(|node| !node.halted).all(|node| {
            let mut registry = node.registry();
            let queued = registry.queued();
            let shared = registry.shared();
            let run = format!("{:016x}", shared.run);
            queued == 0
                && shared.unseen == 0
                && shared.connected != 0
                && dump.run == run
                && shared.cursor == dump.version
        })
    }

    /// What nodes have said, and what they and Redis have, for a test that fails.
    pub(super) fn told(&mut self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            text += &format!("{} {:?}\n", node.node.id(), node.cable);
            let mut registry = node.registry();
            let queued = registry.queued();
            text += &format!("  queued {queued}, {:?}\n", registry.shared());
            drop(registry);
            for (key, shown) in node.shown() {
                text += &format!("  {key:?} {shown:?}\n");
            }
            for (level, line) in &node.lines {
                text += &format!("  {level:?} {line}\n");
            }
        }
        match self.try_dump() {
            Ok(dump) => text += &format!("Redis {dump:#?}\n"),
            Err(e) => text += &format!("Redis: {e}\n"),
        }
        text
    }

    /// Runs a script in Redis that answers with JSON, and is given the prefix.
    pub(super) fn eval(&mut self, script: &str) -> Result<Value, LinkError> {
        // The connection may be of before a restart.
        self.eval_once(script).or_else(|_| self.eval_once(script))
    }

    fn eval_once(&mut self, script: &str) -> Result<Value, LinkError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::open(&Endpoint::parse(&self.redis.url()).unwrap(), PATIENCE)?,
        };
        let answer = link.eval(&Script::new(script), "k", self.prefix.as_bytes())?;
        self.link = Some(link);
        Ok(serde_json::from_str(&String::from_utf8_lossy(&answer)).unwrap())
    }

    pub(super) fn try_dump(&mut self) -> Result<Dump, LinkError> {
        Ok(serde_json::from_value(self.eval(DUMP)?).unwrap())
    }

    pub(super) fn dump(&mut self) -> Dump {
        self.try_dump().unwrap()
    }

    /// All nodes have the same servers, Redis too, in its records and in its public keys.
    #[track_caller]
    pub(super) fn agree(&mut self) {
        let dump = self.dump();
        let mut in_redis = BTreeMap::new();
        for (member, text) in &dump.records {
            let record: Value = serde_json::from_str(text).unwrap();
            if !record["x"].is_null() {
                continue;
            }
            let (name, addr) = member.split_once(' ').unwrap();
            let enabled = record["d"] == 0;
            let shown = Shown {
                weight: record["w"].as_u64().unwrap() as u32,
                max_conns: record["m"].as_u64().unwrap() as u32,
                enabled,
                // A server that is switched off does not show that it drains.
                draining: record["r"] != 0 && enabled,
                settings: record["g"].as_object().cloned().unwrap_or_default(),
            };
            in_redis.insert((name.to_owned(), addr.to_owned()), shown);
        }
        let mut public = BTreeMap::new();
        for (name, keys) in &dump.spaces {
            for (addr, text) in &keys.meta {
                let meta: Value = serde_json::from_str(text).unwrap();
                let key = (name.clone(), addr.clone());
                let draining = in_redis.get(&key).is_some_and(|shown| shown.draining);
                let shown = Shown {
                    weight: meta["weight"].as_u64().unwrap() as u32,
                    max_conns: meta["max_conns"].as_u64().unwrap() as u32,
                    enabled: meta["enabled"].as_bool().unwrap(),
                    draining,
                    settings: given::write(&given::read(meta.as_object().unwrap()).unwrap()),
                };
                public.insert(key, shown);
                assert!(keys.beat.contains_key(addr), "{addr} has no heartbeat: {keys:#?}");
            }
            assert!(keys.beat.keys().eq(keys.meta.keys()), "{keys:#?}");
            assert!(keys.zset.keys().eq(keys.meta.keys()), "{keys:#?}");
        }
        assert_eq!(public, in_redis, "public keys, and records\n{}", self.told());
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            node.registry().check().unwrap();
            assert_eq!(node.shown(), in_redis, "node {i}, and Redis\n{}", self.told());
        }
    }

    /// What Redis says of requests is the sum of what the nodes say.
    #[track_caller]
    pub(super) fn sums_agree(&mut self) {
        let dump = self.dump();
        let mut sums: BTreeMap<String, i64> = BTreeMap::new();
        for counts in dump.counts.values() {
            for (member, mean) in counts {
                *sums.entry(member.clone()).or_default() += mean.parse::<i64>().unwrap();
            }
        }
        sums.retain(|_, sum| *sum != 0);
        let totals: BTreeMap<String, i64> = dump
            .totals
            .iter()
            .map(|(member, total)| (member.clone(), total.parse().unwrap()))
            .collect();
        assert_eq!(totals, sums, "totals, and the sums of counts\n{}", self.told());
        for (name, keys) in &dump.spaces {
            for (addr, score) in &keys.zset {
                let total = totals.get(&format!("{name} {addr}")).copied().unwrap_or(0);
                let score: f64 = score.parse().unwrap();
                let rounded = (total as f64 / 1000.0 + 0.5).floor();
                assert!((score - rounded).abs() < 1e-6, "{addr}: {score}, {total}");
            }
        }
    }
}

/// What is in Redis.
#[derive(Deserialize, Debug)]
#[serde(default)]
#[derive(Default)]
pub(super) struct Dump {
    pub(super) version: u64,
    pub(super) run: String,
    pub(super) epoch: String,
    pub(super) records: BTreeMap<String, String>,
    pub(super) totals: BTreeMap<String, String>,
    pub(super) counts: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) spaces: BTreeMap<String, Public>,
}

/// The public keys of a namespace.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct Public {
    pub(super) meta: BTreeMap<String, String>,
    pub(super) beat: BTreeMap<String, String>,
    pub(super) zset: BTreeMap<String, String>,
}

const DUMP: &str = r"
local P, call = ARGV[1], redis.call
local S = P .. ':sync:'
local function hash(key)
  if call('TYPE', key).ok ~= 'hash' then return nil end
  local all, t = call('HGETALL', key), {}
  for i = 1, #all, 2 do t[all[i]] = all[i + 1] end
  return next(t) and t or nil
end
local out = { counts = {}, spaces = {} }
out.version = tonumber(call('GET', S .. 'version') or '0')
out.run = call('GET', S .. 'run') or ''
out.epoch = call('GET', S .. 'epoch') or ''
out.records, out.totals = hash(S .. 'records'), hash(S .. 'totals')
for _, key in ipairs(call('KEYS', S .. 'counts:*')) do out.counts[key] = hash(key) end
if not next(out.counts) then out.counts = nil end
for _, ns in ipairs(call('SMEMBERS', S .. 'spaces')) do
  local base = P .. ':' .. (ns == 'default' and '' or ns .. ':')
  local zset = call('ZRANGE', base .. 'servers:zset', 0, -1, 'WITHSCORES')
  local scores = {}
  for i = 1, #zset, 2 do scores[zset[i]] = zset[i + 1] end
  out.spaces[ns] = {
    meta = hash(base .. 'servers:meta'), beat = hash(base .. 'heartbeat'),
    zset = next(scores) and scores or nil, kept = true,
  }
end
if not next(out.spaces) then out.spaces = nil end
return cjson.encode(out)
";

/// Numbers that a seed makes: the same each time.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}
