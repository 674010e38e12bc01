//! What one choice and its release cost, by number of servers, policy and load: no nginx, no
//! network, one process. Run by `cargo bench --no-default-features`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ngx_http_upstream_registry_module::balance::{
    Hash, LeastConn, Policy, Random, RandomTwo, RoundRobin, mix,
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
    for policy in [&LeastConn as &dyn Policy, &RoundRobin, &Random, &RandomTwo, &Hash] {
        for n in [3u32, 100, 1_000, 10_000] {
            let id = BenchmarkId::new(policy.name(), n);
            group.bench_with_input(id, &n, |b, n| run(b, policy, *n));
        }
    }
    group.finish();
}

fn run(b: &mut criterion::Bencher<'_>, policy: &dyn Policy, n: u32) {
    let size = (n as usize + 200) * Layout::bytes_per_server() + (1 << 20);
    let zone = Zone::anonymous(size).expect("a zone");
    let name = SpaceName::new(b"backend").expect("a name");
    let mut events = Events::with_capacity(16);
    let mut registry = Registry::lock(&zone).expect("the lock");
    let mut worker = registry.join(1);
    for i in 0..n {
        let ip = Ipv4Addr::from(0x0a00_0000 + i);
        let registration = Registration::of(Address::Inet(ip.into(), 80));
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

criterion_group!(benches, choice);
criterion_main!(benches);
