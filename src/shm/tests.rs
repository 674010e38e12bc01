use std::mem::size_of;

use super::testing::{dies_after, zone};
use super::*;

#[test]
fn layout_fits_and_is_deterministic() {
    for size in [MIN_ARENA, 128 * 1024, 1 << 20, 16 << 20, 100_000_001] {
        let layout = Layout::new(size).unwrap();
        assert_eq!(layout, Layout::new(size).unwrap());
        assert!(layout.ledger_at + layout.ledger * size_of::<LedgerEntry>() <= size, "{size}");
        assert!(layout.servers >= 48, "{size}: {layout:?}");
    }
    assert_eq!(Layout::new(MIN_ARENA - 1), Err(SizeError { given: MIN_ARENA - 1 }));
}

#[test]
fn a_server_takes_at_most_800_bytes() {
    let per_server = Layout::bytes_per_server();
    assert!(per_server <= 800, "{per_server}");
    // All in: what a 16 MB zone really holds.
    let all_in = (16 << 20) / Layout::new(16 << 20).unwrap().servers;
    assert!(all_in <= 800, "{all_in}");
}

#[test]
fn open_finds_what_create_made_and_nothing_else() {
    let made = zone(1 << 20);
    let base = std::ptr::NonNull::new(made.base() as *mut u8).unwrap();
    // SAFETY: the arena is mapped for good; opening reads its header.
    unsafe {
        assert_eq!(Zone::open(base, 1 << 20).unwrap().layout(), made.layout());
        assert!(matches!(Zone::open(base, 1 << 19), Err(OpenError::Magic)));
        assert!(matches!(Zone::open(base, 8), Err(OpenError::Size(_))));
        made.lock().unwrap().header.layout_version += 1;
        assert!(matches!(Zone::open(base, 1 << 20), Err(OpenError::Version { .. })));
        made.lock().unwrap().header.magic = 0;
        assert!(matches!(Zone::open(base, 1 << 20), Err(OpenError::Magic)));
    }
}

#[test]
fn a_lock_outlives_its_holders_death() {
    let zone = zone(1 << 20);
    assert!(!zone.lock().unwrap().needs_repair());
    dies_after(|| std::mem::forget(zone.lock().unwrap()));
    let guard = zone.lock().unwrap();
    assert!(guard.needs_repair());
    drop(guard);
    // Nobody has repaired it yet: the next one is told as well.
    let mut guard = zone.lock().unwrap();
    assert!(guard.needs_repair());
    guard.repaired();
    drop(guard);
    assert!(!zone.lock().unwrap().needs_repair());
}

#[test]
fn a_panic_with_the_lock_calls_for_repair() {
    let zone = zone(1 << 20);
    let panicked = std::panic::catch_unwind(|| {
        let _guard = zone.lock().unwrap();
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    assert!(zone.lock().unwrap().needs_repair());
}

#[test]
fn a_workers_mutex_tells_life_from_death() {
    let zone = zone(1 << 20);
    assert_eq!(zone.claim_worker(3).unwrap(), Some(Acquired::Clean));
    assert_eq!(zone.claim_worker(3).unwrap(), None, "held by this process");
    zone.release_worker(3);
    dies_after(|| assert_eq!(zone.claim_worker(3).unwrap(), Some(Acquired::Clean)));
    assert_eq!(zone.claim_worker(3).unwrap(), Some(Acquired::OwnerDied));
    zone.release_worker(3);
    assert_eq!(zone.claim_worker(3).unwrap(), Some(Acquired::Clean));
}

#[test]
fn many_processes_take_the_lock_in_turn() {
    let zone = zone(1 << 20);
    let workers: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                dies_after(|| {
                    for _ in 0..10_000 {
                        zone.lock().unwrap().header.version += 1;
                    }
                });
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(zone.lock().unwrap().header.version, 40_000);
}
