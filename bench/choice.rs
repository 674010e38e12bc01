//! What one choice and its release cost, by number of servers, policy and load: no nginx, no
//! network, one process. Run by `cargo bench --no-default-features`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ngx_http_upstream_registry_module::balance::{
    Consistent, Hash, LeastConn, Policy, Random, RandomTwo, RoundRobin, mix,
};
use ngx_http_upstream_registry_module::registry::{
    Address, Choice, Events, Now, OnDuplicate, OnExpire, Registration, Registry, Rules, SpaceName,
    Target, Verdict,
};
use ngx_http_upstream_registry_module::shm::{Layout, Zone};

const RULES: Rules = Rules {
    ttl: 30_000,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

const NOW: Now = Now { mono: 1_000_000, wall: 1_700_000_000_000 };

/// Requests in flight while the choices are measured.
const IN_FLIGHT: usize = 64;

fn choice(c: &mut Criterion) {
    let mut group = c.benchmark_group("choice and release");
    for policy in [&LeastConn as &dyn Policy, &RoundRobin, &Random, &RandomTwo, &Hash, &Consistent]
    {
        for n in [3u32, 100, 1_000, 10_000] {
            let id = BenchmarkId::new(policy.name(), n);
            group.bench_with_input(id, &n, |b, n| run(b, policy, *n, |_| 1));
        }
    }
    group.finish();
}

/// Of 10,000 servers.
type Weight = fn(u32) -> u32;

/// The methods that draw, where few servers are eligible, and where weights differ.
fn odd(c: &mut Criterion) {
    let mut group = c.benchmark_group("of 10,000 servers");
    let cases: [(&str, Weight); 4] = [
        ("3 are eligible", |i| u32::from(i % 3_500 == 0)),
        ("half are eligible", |i| i & 1),
        ("weights 1 to 1000", |i| i * 7_919 % 1_000 + 1),
        ("one is a thousand times as heavy", |i| if i == 77 { 1_000 } else { 1 }),
    ];
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        for (case, weight) in cases {
            let id = BenchmarkId::new(policy.name(), case);
            group.bench_function(id, |b| run(b, policy, 10_000, weight));
        }
    }
    group.finish();
}

/// A server of weight 0 is not eligible.
fn run(b: &mut criterion::Bencher<'_>, policy: &dyn Policy, n: u32, weight: Weight) {
    let size = (n as usize + 200) * Layout::bytes_per_server() + (1 << 20);
    let zone = Zone::anonymous(size).expect("a zone");
    let name = SpaceName::new(b"backend").expect("a name");
    let mut events = Events::with_capacity(16);
    let mut registry = Registry::lock(&zone).expect("the lock");
    let mut worker = registry.join(1);
    for i in 0..n {
        let ip = Ipv4Addr::from(0x0a00_0000 + i);
        let registration = Registration {
            weight: Some(weight(i)),
            max_conns: Some(0),
            ..Registration::of(Address::Inet(ip.into(), 80))
        };
        registry.add(name, &registration, &RULES, NOW, &mut events).expect("room");
    }
    let space = registry.find_space(name).expect("the namespace");
    drop(registry);

    let mut target = Target::NONE;
    let mut flights = VecDeque::with_capacity(IN_FLIGHT + 1);
    let mut requests = 0;
    let mut step = || {
        requests += 1;
        let seed = Some(mix(requests));
        let choice = Choice { space, policy, tried: &[], warm: &[], seed, again: None };
        let mut registry = Registry::lock(&zone).expect("the lock");
        let (flight, _) = registry
            .take(&mut worker, &choice, &RULES, NOW, &mut target, &mut events)
            .expect("a server");
        drop(registry);
        black_box(&target);
        flights.push_back(flight);
        if flights.len() > IN_FLIGHT {
            let flight = flights.pop_front().expect("one in flight");
            let mut registry = Registry::lock(&zone).expect("the lock");
            registry.release(&mut worker, flight, Verdict::Fine, NOW);
        }
    };
    for _ in 0..IN_FLIGHT {
        step();
    }
    b.iter(step);
}

criterion_group!(benches, choice, odd);
criterion_main!(benches);
