//! Many nodes of one registry in one process, without nginx: each has a zone of its own, an event
//! loop that steps its [`Node`], and a connection to Redis. `bench/run` fills Redis with them.
//!
//! ```text
//! nodes URL NODES SERVERS PORT INTERVAL
//! ```
//!
//! The servers are 127.0.1.1:PORT and up, in the namespace `fleet`; each node registers its share. A
//! line is printed when every node knows all of them, and one for each line read:
//!
//! | line | |
//! |---|---|
//! | `busy N CHANGES` | from now on each node has N requests on servers, and ends and begins so many a second |
//! | `beats N` | from now on so many signs of life a second, over all nodes |
//! | `report` | how long steps took since the last report |
//!
//! It ends with its input.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead, stdin};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use ngx_http_upstream_registry_module::balance::LeastConn;
use ngx_http_upstream_registry_module::registry::{
    Address, Choice, Flight, Now, OnDuplicate, OnExpire, Registration, Registry, Rules, SpaceName,
    Target, Verdict, Worker,
};
use ngx_http_upstream_registry_module::shm::{Layout, Zone};
use ngx_http_upstream_registry_module::sync::{
    Courier, Endpoint, Listener, Next, Node, Settings, Stop,
};

const SPACE: &[u8] = b"fleet";
const TIMEOUT: Duration = Duration::from_secs(5);

const RULES: Rules = Rules {
    ttl: 3_600_000,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

/// What the nodes are told, and what they tell.
#[derive(Default)]
struct Common {
    /// Requests that each node has on servers.
    busy: AtomicU64,
    /// Of these so many end a second.
    changes: AtomicU64,
    /// Signs of life a second, over all nodes.
    beats: AtomicU64,
    /// Nodes that know all servers.
    whole: AtomicU64,
    took: Mutex<Took>,
}

/// How long steps took, in nanoseconds.
#[derive(Default)]
struct Took {
    /// By the thread's CPU time.
    cpu: Vec<u64>,
    /// The longest by the clock, and that includes waiting for a processor.
    wall: u64,
    exchanges: u64,
}

struct Sim {
    number: u64,
    nodes: u64,
    servers: u64,
    port: u16,
    zone: Zone,
    node: Node,
    courier: Courier,
    worker: Worker,
    heard: Arc<AtomicBool>,
    flights: VecDeque<Flight>,
    common: Arc<Common>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, nodes, servers, port, interval] = arguments.as_slice() else {
        return Err("usage: nodes URL NODES SERVERS PORT INTERVAL".into());
    };
    let (nodes, servers, port) = (nodes.parse()?, servers.parse()?, port.parse()?);
    let interval = interval.parse()?;
    let common = Arc::new(Common::default());
    let began = Instant::now();
    for number in 0..nodes {
        let settings = Settings {
            prefix: "upstream".to_owned(),
            name: format!("simulated-{number}"),
            interval,
            timeout: TIMEOUT.as_millis() as u64,
            tombstone_ttl: 86_400_000,
            spaces: vec!["fleet".to_owned()],
            redis: url.clone(),
        };
        let endpoint = Endpoint::parse(url)?;
        let common = Arc::clone(&common);
        thread::spawn(move || {
            let mut sim = Sim::new(number, nodes, servers, port, settings, endpoint, common);
            sim.register();
            sim.run();
        });
    }
    while common.whole.load(Ordering::Relaxed) < nodes {
        thread::sleep(Duration::from_millis(10));
    }
    println!("{{\"seconds\":{:.3}}}", began.elapsed().as_secs_f64());

    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["busy", requests, changes] => {
                common.busy.store(requests.parse()?, Ordering::Relaxed);
                common.changes.store(changes.parse()?, Ordering::Relaxed);
                println!("{{}}");
            }
            ["beats", rate] => {
                common.beats.store(rate.parse()?, Ordering::Relaxed);
                println!("{{}}");
            }
            ["report"] => common.report(),
            _ => return Err(format!("no command: {line}").into()),
        }
    }
    Ok(())
}

impl Common {
    fn report(&self) {
        let Ok(mut took) = self.took.lock() else { return };
        let mut took = std::mem::take(&mut *took);
        took.cpu.sort_unstable();
        let at = |share: f64| {
            let last = took.cpu.len().saturating_sub(1);
            let ns = took.cpu.get((last as f64 * share) as usize).copied().unwrap_or(0);
            ns as f64 / 1e6
        };
        println!(
            "{{\"steps\":{},\"exchanges\":{},\"p50\":{:.4},\"p999\":{:.4},\"longest\":{:.4},\"longest_wall\":{:.4}}}",
            took.cpu.len(),
            took.exchanges,
            at(0.5),
            at(0.999),
            at(1.0),
            took.wall as f64 / 1e6
        );
    }
}

/// CPU time of this thread in nanoseconds.
fn thread_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn space() -> SpaceName<'static> {
    SpaceName::new(SPACE).expect("a name")
}

impl Sim {
    fn new(
        number: u64,
        nodes: u64,
        servers: u64,
        port: u16,
        settings: Settings,
        endpoint: Endpoint,
        common: Arc<Common>,
    ) -> Self {
        let size = (servers as usize + 200) * Layout::bytes_per_server() + (1 << 20);
        let zone = Zone::anonymous(size).expect("a zone");
        let (instance, worker) = {
            let mut registry = Registry::lock(&zone).expect("the lock");
            registry.share(true);
            (registry.instance(), registry.join(1 + number as u32))
        };
        let channel = format!("{}:sync:changes", settings.prefix);
        let node = Node::new(settings, Vec::new(), instance);
        let (heard, me, id) =
            (Arc::new(AtomicBool::new(false)), thread::current(), node.id().to_owned());
        let flag = Arc::clone(&heard);
        let hear = move |payload: &[u8]| wake(payload, &id, &flag, &me);
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            thread::spawn(work);
            Ok(())
        };
        let listener = Listener::start(endpoint.clone(), &channel, TIMEOUT, spawn, hear);
        // For as long as the process lives.
        std::mem::forget(listener);
        let courier = Courier::new(endpoint, TIMEOUT, Stop::new());
        let flights = VecDeque::new();
        Self { number, nodes, servers, port, zone, node, courier, worker, heard, flights, common }
    }

    fn now() -> Now {
        static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A node that has just been started has a machine that ran for a while.
        let mono = 1_000_000 + BEGAN.elapsed().as_millis() as u64;
        Now { mono, wall: wall.as_millis() as u64 }
    }

    fn address(&self, server: u64) -> Address {
        let ip = Ipv4Addr::new(127, 0, 1 + (server / 250) as u8, 1 + (server % 250) as u8);
        Address::Inet(ip.into(), self.port)
    }

    /// The servers that belong to this node.
    fn own(&self) -> u64 {
        (self.servers + self.nodes - 1 - self.number) / self.nodes
    }

    fn register(&mut self) {
        for i in 0..self.own() {
            let address = self.address(self.number + i * self.nodes);
            let registration = Registration::of(address);
            let mut registry = Registry::lock(&self.zone).expect("the lock");
            registry
                .add(space(), &registration, &RULES, Self::now(), &mut self.node.events)
                .expect("room");
            drop(registry);
            self.node.events.drain().for_each(drop);
        }
    }

    /// The event loop.
    fn run(&mut self) {
        let began = Instant::now();
        let (mut beaten, mut changed) = (0, 0);
        let (mut at_beats, mut at_changes) = (began, began);
        let mut whole = false;
        let mut again = true;
        let mut wait = 0;
        loop {
            if !again {
                let traffic = self.common.beats.load(Ordering::Relaxed)
                    + self.common.changes.load(Ordering::Relaxed);
                // As often as nginx looks for changes of other workers.
                thread::park_timeout(Duration::from_millis(if traffic > 0 { 10 } else { wait }));
            }
            let beats = due(&self.common.beats, self.nodes, &mut at_beats, &mut beaten);
            for i in beats {
                self.beat(i);
            }
            let changes = due(&self.common.changes, 1, &mut at_changes, &mut changed);
            self.carry(changes.count());

            if self.heard.swap(false, Ordering::Relaxed) {
                self.node.hint();
            }
            let next = self.timed(|sim| sim.node.step(&sim.zone, &RULES, Self::now()));
            again = matches!(next, Next::Again);
            match next {
                Next::Send(job) => {
                    let report = self.courier.work(job);
                    self.timed(|sim| sim.node.reported(report, &sim.zone, Self::now()));
                    if let Ok(mut took) = self.common.took.lock() {
                        took.exchanges += 1;
                    }
                    again = true;
                }
                Next::Wait(ms) => wait = ms,
                Next::Again => {}
            }
            for (_, line) in self.node.lines() {
                eprintln!("node {}: {line}", self.number);
            }
            self.node.events.drain().for_each(drop);
            if !whole && self.known() == self.servers {
                whole = true;
                self.common.whole.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn known(&self) -> u64 {
        let registry = Registry::lock(&self.zone).expect("the lock");
        registry.find_space(space()).map_or(0, |space| registry.members(space) as u64)
    }

    fn timed<T>(&mut self, step: impl FnOnce(&mut Self) -> T) -> T {
        let (wall, cpu) = (Instant::now(), thread_time());
        let result = step(self);
        let (cpu, wall) = (thread_time() - cpu, wall.elapsed().as_nanos() as u64);
        if let Ok(mut took) = self.common.took.lock() {
            took.cpu.push(cpu);
            took.wall = took.wall.max(wall);
        }
        result
    }

    fn beat(&mut self, i: u64) {
        let address = self.address(self.number + i % self.own().max(1) * self.nodes);
        let mut registry = Registry::lock(&self.zone).expect("the lock");
        let known = registry.find_space(space());
        // One that is away may have been removed by another program.
        let _ = registry.refresh(known, &address, Self::now(), &mut self.node.events);
    }

    /// Ends so many requests, and begins what is missing.
    fn carry(&mut self, ended: usize) {
        let busy = self.common.busy.load(Ordering::Relaxed) as usize;
        let keep = busy.min(self.flights.len().saturating_sub(ended));
        let now = Self::now();
        while self.flights.len() > keep {
            let Some(flight) = self.flights.pop_front() else { break };
            let mut registry = Registry::lock(&self.zone).expect("the lock");
            registry.release(&mut self.worker, flight, Verdict::Fine, now);
        }
        let mut target = Target::NONE;
        while self.flights.len() < busy {
            let mut registry = Registry::lock(&self.zone).expect("the lock");
            let Some(space) = registry.find_space(space()) else { return };
            let choice = Choice {
                space,
                policy: &LeastConn,
                tried: &[],
                warm: &[],
                seed: None,
                again: None,
            };
            let events = &mut self.node.events;
            match registry.take(&mut self.worker, &choice, &RULES, now, &mut target, events) {
                Ok((flight, _)) => self.flights.push_back(flight),
                Err(_) => return,
            }
        }
    }
}

/// What has become due at a rate that `of` share, numbered from the last one on.
fn due(rate: &AtomicU64, of: u64, since: &mut Instant, done: &mut u64) -> std::ops::Range<u64> {
    let rate = rate.load(Ordering::Relaxed) as f64 / of as f64;
    let n = (since.elapsed().as_secs_f64() * rate) as u64;
    if rate == 0.0 || n > 1000 {
        // After a pause nothing is made up for.
        *since = Instant::now();
        return *done..*done;
    }
    *since += Duration::from_secs_f64(n as f64 / rate);
    let first = *done;
    *done += n;
    first..*done
}

fn wake(payload: &[u8], id: &str, heard: &AtomicBool, node: &Thread) {
    if payload != id.as_bytes() && !heard.swap(true, Ordering::Relaxed) {
        node.unpark();
    }
}
