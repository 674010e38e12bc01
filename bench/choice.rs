//! What one choice and its release cost, by number of servers, policy and load: no nginx, no
//! network, one process. Run by `cargo bench --no-default-features`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use ngx_http_upstream_registry_module::balance::{
    Consistent, Hash, IpHash, LeastConn, Policy, Random, RandomTwo, RoundRobin, mix,
};
use ngx_http_upstream_registry_module::registry::{
    Address, Choice, Events, Now, OnDuplicate, OnExpire, Registration, Registry, Rules, SpaceName,
    Sweep, Target, Verdict,
};
use ngx_http_upstream_registry_module::shm::{Layout, Zone};

const RULES: Rules = Rules {
    ttl: 3_600_000,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

const NOW: Now = Now { mono: 1_000_000, wall: 1_700_000_000_000 };

/// Requests in flight while the choices are measured.
const IN_FLIGHT: usize = 64;

/// Requests in a millisecond: how fast the clock goes on from choice to choice.
const PACE: u64 = 64;

/// The weight of the server of that number; one of weight 0 is not eligible.
type Weight = fn(u32) -> u32;

/// What is chosen from.
#[derive(Clone, Copy)]
struct Case {
    weight: Weight,
    rules: Rules,
    /// Milliseconds from the registration of all to the first choice; a cleanup is the last thing
    /// before it.
    since: u64,
}

/// All alike, and fresh.
const PLAIN: Case = Case { weight: |_| 1, rules: RULES, since: 0 };

/// What changes without a request: half of an hour's growth lies behind all of them; or all are
/// silent, and requests go to them in panic.
const TURNS: [(&str, Case); 2] = [
    (
        "all grow",
        Case { rules: Rules { slow_start: 3_600_000, ..RULES }, since: 1_800_000, ..PLAIN },
    ),
    ("in panic", Case { rules: Rules { panic_threshold: 50, ..RULES }, since: 3_610_000, ..PLAIN }),
];

const POLICIES: [&dyn Policy; 7] =
    [&LeastConn, &RoundRobin, &Random, &RandomTwo, &Hash, &Consistent, &IpHash];

fn choice(c: &mut Criterion) {
    let mut group = c.benchmark_group("choice and release");
    for policy in POLICIES {
        for n in [3u32, 100, 1_000, 10_000] {
            let id = BenchmarkId::new(policy.name(), n);
            measure(&mut group, id, policy, n, PLAIN);
        }
    }
    group.finish();
}

/// Servers of which few are eligible, or whose weights differ, for the methods that draw; and for all
/// methods those that grow, and those in panic.
fn odd(c: &mut Criterion) {
    let mut group = c.benchmark_group("of 10,000 servers");
    let weights: [(&str, Weight); 4] = [
        ("3 are eligible", |i| u32::from(i % 3_500 == 0)),
        ("half are eligible", |i| i & 1),
        ("weights 1 to 1000", |i| i * 7_919 % 1_000 + 1),
        ("one is a thousand times as heavy", |i| if i == 77 { 1_000 } else { 1 }),
    ];
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        for (case, weight) in weights {
            let id = BenchmarkId::new(policy.name(), case);
            measure(&mut group, id, policy, 10_000, Case { weight, ..PLAIN });
        }
    }
    for policy in POLICIES {
        for (name, case) in TURNS {
            let id = BenchmarkId::new(policy.name(), name);
            measure(&mut group, id, policy, 10_000, case);
        }
    }
    group.finish();
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    policy: &dyn Policy,
    n: u32,
    case: Case,
) {
    // Not made for a benchmark that the command line leaves out.
    let mut choose = None;
    group.bench_function(id, |b| b.iter(choose.get_or_insert_with(|| chooser(policy, n, case))));
}

/// A choice each time it is called, and the release of an earlier one. It has a zone, which is never
/// unmapped: criterion calls what it measures a hundred times, and all of these go on with the same.
fn chooser(policy: &dyn Policy, n: u32, case: Case) -> impl FnMut() {
    let rules = case.rules;
    let size = (n as usize + 200) * Layout::bytes_per_server() + (1 << 20);
    let zone = Zone::anonymous(size).expect("a zone");
    let name = SpaceName::new(b"backend").expect("a name");
    let mut events = Events::with_capacity(16);
    let mut registry = Registry::lock(&zone).expect("the lock");
    let mut worker = registry.join(1);
    for i in 0..n {
        let ip = Ipv4Addr::from(0x0a00_0000 + i);
        let registration = Registration {
            weight: Some((case.weight)(i)),
            max_conns: Some(0),
            ..Registration::of(Address::Inet(ip.into(), 80))
        };
        registry.add(name, &registration, &rules, NOW, &mut events).expect("room");
    }
    let space = registry.find_space(name).expect("the namespace");
    let later =
        move |ms| Now { mono: NOW.mono + case.since + ms, wall: NOW.wall + case.since + ms };
    let mut sweep = Sweep::of(space);
    while !sweep.done {
        registry.sweep(&mut sweep, 128, &rules, later(0), &mut events);
    }
    drop(registry);

    let mut target = Target::NONE;
    let mut flights = VecDeque::with_capacity(IN_FLIGHT + 1);
    let mut requests = 0;
    let mut step = move || {
        requests += 1;
        let now = later(requests / PACE);
        let seed = Some(mix(requests));
        let choice = Choice { space, policy, tried: &[], warm: &[], seed, again: None };
        let mut registry = Registry::lock(&zone).expect("the lock");
        let (flight, _) = registry
            .take(&mut worker, &choice, &rules, now, &mut target, &mut events)
            .expect("a server");
        drop(registry);
        black_box(&target);
        flights.push_back(flight);
        if flights.len() > IN_FLIGHT {
            let flight = flights.pop_front().expect("one in flight");
            let mut registry = Registry::lock(&zone).expect("the lock");
            registry.release(&mut worker, flight, Verdict::Fine, now);
        }
    };
    for _ in 0..IN_FLIGHT {
        step();
    }
    step
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = choice, odd
}
criterion_main!(benches);
