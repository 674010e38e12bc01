//! `panic_threshold`: when too many servers are out at once the fault is more likely ours than theirs,
//! and requests go on to all of them.
//!
//! Whether it is so follows from the counts of classes that are kept. The servers that it makes
//! eligible stand in the orders of their namespace all the time, apart from the ready ones
//! (`order::Standing`): so it begins and ends by one bit, however many servers there are.

use super::{Event, Events, Registry, Rules};
use crate::shm::{class, space_flag};

/// Fewer servers than this are no sample to judge from.
const SAMPLE: u32 = 4;

impl Registry<'_> {
    /// Whether requests to a namespace go to servers that are expired or unhealthy as well.
    #[inline]
    pub(super) fn in_panic(&self, space: u32) -> bool {
        self.g.spaces[space as usize].flags & space_flag::PANIC != 0
    }

    /// How many servers of a namespace are not switched off by hand.
    fn judged(&self, space: u32) -> u32 {
        let s = &self.g.spaces[space as usize];
        s.members - s.names() - s.classes[usize::from(class::DISABLED)]
    }

    /// Whether a namespace would be in panic if all its servers that are not switched off by hand
    /// were out.
    pub(super) fn would_panic(&self, space: u32, rules: &Rules) -> bool {
        rules.panic_threshold > 0 && self.judged(space) >= SAMPLE
    }

    /// Notes whether a namespace is in panic by now, and returns it.
    #[inline]
    pub(super) fn mind_panic(&mut self, space: u32, rules: &Rules, events: &mut Events) -> bool {
        let s = &self.g.spaces[space as usize];
        let out = s.classes[usize::from(class::EXPIRED)] + s.classes[usize::from(class::UNHEALTHY)];
        let is = self.would_panic(space, rules)
            && u64::from(out) * 100
                > u64::from(self.judged(space)) * u64::from(rules.panic_threshold);
        if is != self.in_panic(space) {
            self.turn_panic(space, out, events);
        }
        is
    }

    #[cold]
    fn turn_panic(&mut self, space: u32, out: u32, events: &mut Events) {
        let of = self.judged(space);
        let s = &mut self.g.spaces[space as usize];
        s.flags ^= space_flag::PANIC;
        events.push(Event::panic(s.flags & space_flag::PANIC != 0, s, out, of));
    }

    /// The same for all namespaces.
    pub(super) fn mind_all_panics(&mut self, rules: &Rules, events: &mut Events) {
        for space in 0..self.g.header.space_high_water {
            if self.g.spaces[space as usize].live != 0 {
                self.mind_panic(space, rules, events);
            }
        }
    }
}
