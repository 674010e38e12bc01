//! Heaps of servers, all of a zone in one table.
//!
//! Four children a node: the keys of siblings share cache lines, and a heap of 10,000 servers is
//! seven levels deep. A server's position is kept in [`Slots`], so that any server can be moved or
//! removed in logarithmic time. Each heap is a run of entries ([`Extent`]) that grows by half; when
//! the table has no room at its end, all runs are pushed together, which moves entries but no
//! positions, because positions count from the start of a run. The trees (`tree`) are runs of the
//! same table.

use crate::shm::{Extent, HeapEntry, Key, NONE, Slots, Space, Tables, fault, heap};

const CHILDREN: usize = 4;

/// Which cell of [`Slots::at`] a heap uses. Primaries and backups share one: a server is either.
pub(super) const fn cell(id: usize) -> usize {
    if id == heap::TREE { 3 } else { id / 2 }
}

/// One heap, seen alone.
struct Heap<'a> {
    entries: &'a mut [HeapEntry],
    slots: &'a mut [Slots],
    cell: usize,
}

impl Heap<'_> {
    fn put(&mut self, at: usize, entry: HeapEntry) {
        self.entries[at] = entry;
        self.slots[entry.server as usize].at[self.cell] = at as u32;
    }

    /// Moves the hole at `at` up until `entry` fits.
    fn rise(&mut self, mut at: usize, entry: HeapEntry) {
        while at > 0 {
            let parent = (at - 1) / CHILDREN;
            if self.entries[parent].key <= entry.key {
                break;
            }
            self.put(at, self.entries[parent]);
            at = parent;
        }
        self.put(at, entry);
    }

    /// Moves the hole at `at` down until `entry` fits.
    fn sink(&mut self, mut at: usize, entry: HeapEntry) {
        loop {
            let first = at * CHILDREN + 1;
            let end = (first + CHILDREN).min(self.entries.len());
            let mut least = None;
            let mut key = entry.key;
            for child in first..end {
                if self.entries[child].key < key {
                    key = self.entries[child].key;
                    least = Some(child);
                }
            }
            let Some(child) = least else { break };
            self.put(at, self.entries[child]);
            at = child;
        }
        self.put(at, entry);
    }

    fn place(&mut self, at: usize, entry: HeapEntry) {
        if at > 0 && entry.key < self.entries[(at - 1) / CHILDREN].key {
            self.rise(at, entry);
        } else {
            self.sink(at, entry);
        }
    }
}

fn view<'a>(t: &'a mut Tables<'_>, extent: Extent, id: usize) -> Heap<'a> {
    let start = extent.start as usize;
    Heap {
        entries: &mut t.heap[start..start + extent.len as usize],
        slots: t.slots,
        cell: cell(id),
    }
}

/// The entries of a heap; the first is the least.
pub(super) fn entries<'a>(t: &'a Tables<'_>, space: u32, id: usize) -> &'a [HeapEntry] {
    let Extent { start, len, .. } = t.spaces[space as usize].heaps[id];
    &t.heap[start as usize..(start + len) as usize]
}

/// Adds a server.
pub(super) fn insert(t: &mut Tables<'_>, space: u32, id: usize, server: u32, key: Key) {
    if !reserve(t, space, id) {
        // The table has an entry for each server in each order: this can't be.
        debug_assert!(false, "the heap table is full");
        return;
    }
    t.spaces[space as usize].heaps[id].len += 1;
    fault::point!("heap.longer");
    let extent = t.spaces[space as usize].heaps[id];
    view(t, extent, id).rise(extent.len as usize - 1, HeapEntry { key, server, more: 0 });
    fault::point!("heap.placed");
}

/// Takes a server out; nothing happens when it is not in.
pub(super) fn remove(t: &mut Tables<'_>, space: u32, id: usize, server: u32) {
    let at = t.slots[server as usize].at[cell(id)];
    let extent = t.spaces[space as usize].heaps[id];
    if at == NONE || at >= extent.len {
        return;
    }
    t.slots[server as usize].at[cell(id)] = NONE;
    let last = t.heap[(extent.start + extent.len - 1) as usize];
    t.spaces[space as usize].heaps[id].len -= 1;
    fault::point!("heap.shorter");
    let extent = t.spaces[space as usize].heaps[id];
    if at < extent.len {
        view(t, extent, id).place(at as usize, last);
    }
}

/// Gives a server another key; nothing happens when it is not in.
#[inline]
pub(super) fn update(t: &mut Tables<'_>, space: u32, id: usize, server: u32, key: Key) {
    let at = t.slots[server as usize].at[cell(id)];
    let extent = t.spaces[space as usize].heaps[id];
    if at == NONE || at >= extent.len {
        return;
    }
    view(t, extent, id).place(at as usize, HeapEntry { key, server, more: 0 });
}

/// Makes room for one more entry.
pub(super) fn reserve(t: &mut Tables<'_>, space: u32, id: usize) -> bool {
    let Extent { start, cap, len } = t.spaces[space as usize].heaps[id];
    if len < cap {
        return true;
    }
    let total = t.heap.len() as u32;
    let more = len / 2 + 4;

    // The last run of the table grows where it is.
    if start + cap == t.header.heap_used && cap > 0 && total - t.header.heap_used >= more {
        t.header.heap_used += more;
        t.spaces[space as usize].heaps[id].cap += more;
        return true;
    }
    if total - t.header.heap_used < len + more {
        compact(t);
    }
    let cap = (len + more).min(total - t.header.heap_used);
    if cap <= len {
        return make_last(t, space, id);
    }
    let from = t.spaces[space as usize].heaps[id].start as usize;
    let to = t.header.heap_used;
    t.heap.copy_within(from..from + len as usize, to as usize);
    fault::point!("heap.moved");
    t.spaces[space as usize].heaps[id] = Extent { start: to, cap, len };
    t.header.heap_used += cap;
    true
}

/// Lets a run grow in a table that has no room for it and its copy: the run is made the last one,
/// where it is. To be called after [`compact`].
fn make_last(t: &mut Tables<'_>, space: u32, id: usize) -> bool {
    let Extent { start, cap, len } = t.spaces[space as usize].heaps[id];
    let used = t.header.heap_used;
    let more = (t.heap.len() as u32 - used).min(len / 2 + 4);
    if more == 0 {
        return false;
    }
    t.heap[start as usize..used as usize].rotate_left(cap as usize);
    for i in 0..t.header.space_high_water as usize {
        let s = &mut t.spaces[i];
        if s.live != 0 {
            for run in s.heaps.iter_mut().filter(|run| run.start >= start + cap) {
                run.start -= cap;
            }
        }
    }
    let cap = cap + more;
    t.spaces[space as usize].heaps[id] = Extent { start: used - (cap - more), cap, len };
    t.header.heap_used = used + more;
    true
}

/// Pushes all runs together at the start of the table.
fn compact(t: &mut Tables<'_>) {
    let mut runs: Vec<(u32, u32, usize)> = Vec::new();
    for i in 0..t.header.space_high_water {
        let s = &t.spaces[i as usize];
        if s.live != 0 {
            runs.extend((0..heap::COUNT).map(|id| (s.heaps[id].start, i, id)));
        }
    }
    runs.sort_unstable();
    let mut end = 0;
    for (start, space, id) in runs {
        let len = t.spaces[space as usize].heaps[id].len;
        t.heap.copy_within(start as usize..(start + len) as usize, end as usize);
        fault::point!("heap.compacting");
        t.spaces[space as usize].heaps[id] = Extent { start: end, cap: len, len };
        end += len;
    }
    t.header.heap_used = end;
}

/// Whether the heaps of a namespace are in order and agree with the positions: for tests and
/// invariant checks.
pub(super) fn check(t: &Tables<'_>, i: u32) -> Result<(), String> {
    let s: &Space = &t.spaces[i as usize];
    for id in 0..heap::TREE {
        let Extent { start, cap, len } = s.heaps[id];
        if len > cap || start + cap > t.header.heap_used {
            return Err(format!("heap {id} of namespace {i}: run {start}+{cap} holds {len}"));
        }
        let entries = entries(t, i, id);
        for (at, e) in entries.iter().enumerate() {
            if at > 0 && entries[(at - 1) / CHILDREN].key > e.key {
                return Err(format!("heap {id} of namespace {i}: out of order at {at}"));
            }
            if t.slots[e.server as usize].at[cell(id)] != at as u32 {
                return Err(format!("heap {id} of namespace {i}: position of {} is off", e.server));
            }
        }
    }
    Ok(())
}
