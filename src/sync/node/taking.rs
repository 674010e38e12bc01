//! What an exchange brought, taken into the zone slice by slice.

use std::time::Instant;

use super::*;

impl Node {
    /// Takes in a slice of what an exchange brought.
    #[expect(clippy::too_many_arguments, reason = "the fields of the phase, and the zone")]
    pub(super) fn take(
        &mut self,
        done: Box<Done>,
        asked: u64,
        mut part: usize,
        mut at: usize,
        zone: &Zone,
        rules: &Rules,
        now: Now,
    ) -> Next {
        let began = Instant::now();
        let made = self.made(done.now, now);
        while part < PARTS && began.elapsed() < TURN && self.events.len() < SLICE as usize {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            if registry.is_retired() {
                return Next::Wait(1000);
            }
            let len = self.take_part(&mut registry, &done, part, &mut at, rules, made);
            if at >= len {
                (part, at) = (part + 1, 0);
            }
        }
        if part < PARTS {
            self.phase = Phase::Taking { done, asked, part, at };
            return Next::Again;
        }
        self.taken(&done, asked, zone, now)
    }

    /// Takes some of one kind; returns how many of it there are.
    pub(super) fn take_part(
        &mut self,
        registry: &mut Registry<'_>,
        done: &Done,
        part: usize,
        at: &mut usize,
        rules: &Rules,
        now: Now,
    ) -> usize {
        // One that has to be put into its place in the order of heartbeats costs more.
        let most = if part == 0 { SLICE as usize } else { 32 };
        let end = |len: usize, at: usize| len.min(at + most);
        match part {
            0 => {
                let end = end(self.tickets.len().min(done.results.len()), *at);
                for i in *at..end {
                    let (outcome, version) = done.results[i];
                    registry.told(self.tickets[i], outcome, version, now, &mut self.events);
                }
                *at = end;
                self.tickets.len().min(done.results.len())
            }
            1 => {
                let end = end(done.records.len(), *at);
                for record in &done.records[*at..end] {
                    if !Network::admit(&self.allow, &record.address) {
                        self.refuse(&record.address.to_string());
                        continue;
                    }
                    match registry.take_record(record, rules, now, &mut self.events) {
                        Ok(Some(age)) if registry.shared().unseen == 0 => {
                            registry.shared().lag = age;
                        }
                        Ok(_) => {}
                        Err(e) => {
                            if self.without_room == 0 {
                                let line = format!("not all servers in Redis have room here: {e}");
                                self.lines.push((Level::Error, line));
                            }
                            self.without_room += 1;
                            self.look_again = now.mono + RETRY;
                        }
                    }
                }
                *at = end;
                done.records.len()
            }
            2 => {
                let end = end(done.beats.len(), *at);
                for (space, address, age) in &done.beats[*at..end] {
                    if let Some(space) = SpaceName::new(space.as_bytes()) {
                        let address = address.as_bytes();
                        registry.take_beat(space, address, *age, rules, now, &mut self.events);
                    }
                }
                *at = end;
                done.beats.len()
            }
            _ => {
                let end = end(done.totals.len(), *at);
                for (space, address, total, mine) in &done.totals[*at..end] {
                    if let Some(space) = SpaceName::new(space.as_bytes()) {
                        let lost = registry.take_total(space, address.as_bytes(), *total, *mine);
                        // Unless this node has more counts than fit into one exchange.
                        self.recount |= lost && self.counts.is_empty();
                    }
                }
                *at = end;
                done.totals.len()
            }
        }
    }

    pub(super) fn refuse(&mut self, address: &str) {
        if self.refused.len() < REMEMBERED && self.refused.insert(address.to_owned()) {
            let line =
                format!("server {address} in Redis is not in allow_servers and left out here");
            self.lines.push((Level::Notice, line));
        }
    }

    /// All that an exchange brought has been taken in.
    pub(super) fn taken(&mut self, done: &Done, asked: u64, zone: &Zone, now: Now) -> Next {
        let read = !self.more;
        self.reset = done.unknown;
        if done.unknown {
            self.next_round = 0;
        }
        if self.lease != done.lease {
            self.lease = done.lease;
            self.next_scan = now.mono;
        }
        let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
        let shared = registry.shared();
        if shared.nodes != done.nodes.max(1) {
            shared.nodes = done.nodes.max(1);
            self.at_once = true;
        }
        if read {
            self.more = done.more;
            (shared.cursor, shared.beat_cursor, shared.total_cursor) = done.cursors;
        }
        let complete = read && !done.more;
        // After a wipe the public keys say who stays: they have to be looked at first.
        let settles = shared.unseen != 0 && (shared.unseen != WIPED || done.scanned);
        if complete {
            shared.synced_wall = now.wall;
            // After a time without Redis everybody has a whole TTL to be heard of again.
            let gap = asked.saturating_sub(shared.heard_until);
            if gap > self.settings.interval * 2 + self.settings.timeout {
                shared.resumed = now.mono;
            }
            shared.heard_until = shared.heard_until.max(asked);
        }
        drop(registry);
        if complete && settles {
            self.phase = Phase::Settling(0);
            return Next::Again;
        }
        if self.more { Next::Again } else { self.rest(zone, now) }
    }
}
