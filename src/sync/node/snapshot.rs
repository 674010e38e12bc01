//! Everything in Redis read anew: because it has lost something, because this node was away for too
//! long, or because somebody has wiped it on purpose.

use std::time::Instant;

use super::*;

impl Node {
    pub(super) fn unseen(&self, unseen: u32) -> Unseen {
        match unseen {
            DROP => Unseen::Drop(self.settings.tombstone_ttl),
            WIPED => Unseen::Wipe,
            _ => Unseen::Tell,
        }
    }

    /// Begins to read everything: a slice of the servers is marked as not found yet.
    #[expect(clippy::too_many_arguments, reason = "the fields of the phase, and the zone")]
    pub(super) fn mark(
        &mut self,
        mut next: u32,
        mut others: u32,
        epoch: Identity,
        run: Identity,
        unseen: u32,
        zone: &Zone,
        now: Now,
    ) -> Next {
        let began = Instant::now();
        let mut through = false;
        while !through && began.elapsed() < TURN {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            let what = self.unseen(unseen);
            let marked = registry.mark_unseen(&mut next, SLICE, what, now);
            through = registry.forget_others(&mut others, SLICE) && marked;
            if through {
                let shared = registry.shared();
                (shared.cursor, shared.beat_cursor, shared.total_cursor) = (0, 0, 0);
                (shared.epoch, shared.run, shared.unseen) = (epoch.0, run.0, unseen);
            }
        }
        if !through {
            self.phase = Phase::Marking { next, others, epoch, run, unseen };
        }
        self.more = true;
        Next::Again
    }

    /// Everything has been read: what was not in it is told, or goes.
    pub(super) fn settle(&mut self, mut next: u32, zone: &Zone, now: Now) -> Next {
        let began = Instant::now();
        let mut through = false;
        while !through && began.elapsed() < TURN && self.events.len() < SLICE as usize {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            let unseen = self.unseen(registry.shared().unseen);
            let forgotten;
            (forgotten, through) =
                registry.settle_unseen(&mut next, SLICE, unseen, now, &mut self.events);
            self.forgotten += forgotten;
            if through {
                let shared = registry.shared();
                (shared.unseen, shared.resumed) = (0, now.mono);
            }
            drop(registry);
            if through && unseen == Unseen::Wipe {
                let n = replace(&mut self.forgotten, 0);
                let line = format!("Redis was emptied on purpose: {n} servers forgotten");
                self.say(Level::Notice, line);
            }
        }
        if !through {
            self.phase = Phase::Settling(next);
        }
        Next::Again
    }

    pub(super) fn awaits_scan(&self, zone: &Zone) -> bool {
        Registry::lock(zone).is_ok_and(|mut registry| registry.shared().unseen == WIPED)
    }

    /// Forgets a slice of what other nodes have on servers.
    pub(super) fn forget(&mut self, mut next: u32, zone: &Zone) -> Next {
        let began = Instant::now();
        let mut through = false;
        while !through && began.elapsed() < TURN {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            through = registry.forget_others(&mut next, SLICE);
            if through {
                registry.shared().total_cursor = 0;
            }
        }
        if !through {
            self.phase = Phase::Forgetting(next);
        }
        Next::Again
    }

    pub(super) fn wipe(&mut self, mut wipe: Wipe, epoch: Identity, zone: &Zone) -> Next {
        let began = Instant::now();
        while !wipe.done && began.elapsed() < TURN {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            registry.wipe(&mut wipe, SLICE);
            if wipe.done {
                let shared = registry.shared();
                (shared.epoch, shared.run, shared.unseen) = (epoch.0, 0, WIPED);
            }
        }
        if !wipe.done {
            self.phase = Phase::Wiping(wipe, epoch);
            return Next::Again;
        }
        self.more = true;
        Next::Again
    }
}
