//! Endpoints of the fault-injection build: `check` looks at the whole zone, `fault` orders deaths.

use serde::Serialize;

use super::Reply;
use crate::registry::{Registry, Totals};
use crate::shm::{Zone, fault};

#[derive(Serialize)]
struct Checked {
    problems: Vec<String>,
    connections: u64,
    outside: u64,
    ledger: usize,
    workers: usize,
    servers: usize,
    namespaces: usize,
    retired: bool,
}

#[derive(Serialize)]
struct Point {
    name: &'static str,
    master: u32,
    worker: u32,
}

#[derive(Serialize)]
struct Orders {
    waiting: u32,
    points: Vec<Point>,
}

/// `GET check`: 500 when the zone contradicts itself. It takes the lock, so a repair that is due
/// comes first.
pub(super) fn check(zone: &Zone) -> Result<Reply, Reply> {
    let registry = Registry::lock(zone).map_err(|e| Reply::error(500, e.to_string()))?;
    let problem = registry.check().err();
    let Totals { connections, outside, ledger, workers, servers, spaces } = registry.totals();
    let retired = registry.is_retired();
    drop(registry);
    let failed = problem.is_some();
    let reply = Reply::success(Checked {
        problems: problem.into_iter().collect(),
        connections,
        outside,
        ledger,
        workers,
        servers,
        namespaces: spaces,
        retired,
    });
    Ok(if failed { Reply { status: 500, ..reply } } else { reply })
}

/// `GET fault?at=POINT[:NTH[:WHO]],…` orders deaths, `?at=` none; without `at` it only tells how
/// many are to come and how often each point was passed.
pub(super) fn order(query: &[u8]) -> Result<Reply, Reply> {
    if let Some((_, at)) = form_urlencoded::parse(query).find(|(name, _)| name == "at") {
        fault::arm(&at).map_err(|e| Reply::error(400, e))?;
    }
    let passed = fault::passed().into_iter();
    let points = passed.map(|(name, master, worker)| Point { name, master, worker }).collect();
    Ok(Reply::success(Orders { waiting: fault::waiting(), points }))
}
