//! The orders in which ready servers stand, and how a policy reads them.
//!
//! Each server has a *turn* in each order: a virtual time that moves by `STRIDE / weight` with each
//! request it gets (start-time fair queueing, Goyal, Vin and Cheng 1996). Among servers of equal
//! load the one with the earliest turn is next, so ties go round, by weight. A server that was away
//! rejoins at the namespace's virtual time: it is not owed the turns that it missed.

use std::collections::BinaryHeap;

use super::Registry;
use super::member::{is_one, standing};
use super::{heap, tree};
use crate::idle::ServerKey;
use crate::shm::{HeapEntry, Key, NONE, Server, Space, Tables, class, flag};

/// One turn of a server of weight 1. Divided by the largest weight there are still eight bits left,
/// and 2^38 requests to a lone server of weight 1 fit below [`TURN_LIMIT`].
const STRIDE: u64 = 1 << 24;

/// When virtual time comes here everything starts again from 0.
const TURN_LIMIT: u64 = 1 << 62;

/// How ready servers are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Least requests for its weight first, then by turn.
    Load,
    /// By turn alone.
    Turn,
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Servers that are no backups.
    Primary,
    /// Backups, when no primary is eligible.
    Backup,
}

/// Both orders.
pub(super) const ORDERS: [Order; 2] = [Order::Load, Order::Turn];

impl Order {
    pub(super) const fn bit(self) -> u8 {
        1 << self as u8
    }

    pub(super) const fn heap(self, group: Group) -> usize {
        self as usize * 2 + group as usize
    }

    fn key(self, s: &Server) -> Key {
        match self {
            Order::Load => Key { major: load(s), minor: s.turn[0] },
            Order::Turn => Key { major: s.turn[1], minor: s.number },
        }
    }
}

/// Requests for each unit of weight, in units of 2^-32: exact, because two fractions with
/// denominators up to [`super::WEIGHT_MAX`] differ by more than one unit. Those of other nodes come
/// in 1/256.
pub(super) fn load(s: &Server) -> u64 {
    let mut others = u64::from(s.others_damped);
    if s.flags & flag::MANY_NODES != 0 {
        // Rounded to whole requests, at another place on each node and for each server. Exact
        // fractions would break the ties of all nodes alike, and send all their odd requests to the
        // same server; equally rounded ones would move all nodes at once. Of few nodes the odd
        // requests are few, and exact fractions are the fairest.
        let place = s.started_mono.wrapping_add(s.number).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        others = (others + place) & !0xff;
    }
    let requests = (u64::from(s.conns) << 8) + others;
    if s.warmth > 0 {
        return slow_load(s, requests);
    }
    ((requests << 24) / u64::from(s.weight.max(1))).min(STANDBY - 1)
}

#[cold]
fn slow_load(s: &Server, requests: u64) -> u64 {
    let load = (u128::from(requests) << 32) / u128::from(slow_weight(s));
    u64::try_from(load).unwrap_or(u64::MAX).min(STANDBY - 1)
}

/// The weight of a server that grows to it, in 1/256.
fn slow_weight(s: &Server) -> u64 {
    u64::from(s.weight.max(1)) * u64::from(s.warmth.max(1))
}

/// How far a request moves a server's turn.
fn stride(s: &Server) -> u64 {
    match s.warmth {
        0 => STRIDE / u64::from(s.weight.max(1)),
        _ => (STRIDE << 8) / slow_weight(s),
    }
}

/// Where a server stands in the heaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// In the orders, with its group.
    Ready,
    /// In the orders, apart: eligible in a panic.
    Standby,
    /// Among those that failed, until they may be tried again.
    Failed,
    /// In none.
    Out,
}

/// Servers on standby stand in the heaps of backups, behind all of these: their keys are higher by
/// this. No load or turn comes near it.
const STANDBY: u64 = 1 << 63;

fn is_standby(key: Key) -> bool {
    key.major & STANDBY != 0
}

/// The key as it compares with those of the ready ones.
fn plain(key: Key) -> Key {
    Key { major: key.major & !STANDBY, ..key }
}

/// The heap that a server of a class is in, and its key there.
fn place(s: &Server, order: Order) -> (usize, Key) {
    let key = order.key(s);
    if s.class == u32::from(class::READY) {
        return (order.heap(group(s)), key);
    }
    (order.heap(Group::Backup), Key { major: key.major | STANDBY, ..key })
}

/// Whether a server stands in an order.
pub(super) fn stands(t: &Tables<'_>, server: u32) -> bool {
    let at = t.slots[server as usize].at;
    ORDERS.iter().any(|order| at[heap::cell(order.heap(Group::Primary))] != NONE)
}

/// The group of a server.
pub(super) fn group(s: &Server) -> Group {
    if s.flags & flag::BACKUP == 0 { Group::Primary } else { Group::Backup }
}

/// Puts a server that has become ready, or is on standby, into the orders that its namespace keeps.
pub(super) fn enter(t: &mut Tables<'_>, server: u32) {
    let s = &t.servers[server as usize];
    let (space, weight) = (s.space, s.weight);
    if s.class == u32::from(class::READY) {
        let common = &mut t.spaces[space as usize].common_weight;
        *common = if *common == NONE || *common == weight { weight } else { 0 };
    }
    for order in ORDERS {
        if t.spaces[space as usize].orders & order.bit() != 0 {
            enter_one(t, space, server, order);
        }
    }
}

fn enter_one(t: &mut Tables<'_>, space: u32, server: u32, order: Order) {
    let Space { turn, common_weight, .. } = t.spaces[space as usize];
    let s = &mut t.servers[server as usize];
    let now = turn[order.heap(group(s))];
    let start = now + phase(s.number, stride(s), common_weight != 0);
    s.turn[order as usize] = s.turn[order as usize].max(start);
    let (id, key) = place(s, order);
    heap::insert(t, space, id, server, key);
}

/// How far into its first stride a server starts. Equal servers start close together, in the order
/// of their numbers. Where weights differ, starts are spread by the golden ratio: light servers that all
/// started together would come one after the other, and leave the heavy ones a long run.
fn phase(number: u64, stride: u64, alike: bool) -> u64 {
    if alike {
        return stride / 2 + ((stride * (number & 0xffff)) >> 17);
    }
    let fraction = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (stride * fraction) >> 24
}

/// Takes a server out of the orders.
pub(super) fn leave(t: &mut Tables<'_>, server: u32) {
    let s = &t.servers[server as usize];
    let (space, ids) = (s.space, ORDERS.map(|order| place(s, order).0));
    for id in ids {
        heap::remove(t, space, id, server);
    }
}

/// Moves a server to where its load and turn now put it.
#[inline]
pub(super) fn rank(t: &mut Tables<'_>, server: u32) {
    let space = t.servers[server as usize].space;
    for order in ORDERS {
        if t.spaces[space as usize].orders & order.bit() != 0 {
            let (id, key) = place(&t.servers[server as usize], order);
            heap::update(t, space, id, server, key);
        }
    }
}

/// Charges a turn in the order that a request's server was chosen by, and in no other: where two
/// upstreams share a namespace, the turns of each are its own. The server's rank is the caller's
/// to renew.
#[inline]
pub(super) fn charge(t: &mut Tables<'_>, server: u32, order: Order) {
    let s = &mut t.servers[server as usize];
    let group = group(s);
    let stride = stride(s);
    let now = &mut t.spaces[s.space as usize].turn[order.heap(group)];
    let start = s.turn[order as usize].max(*now);
    *now = start;
    s.turn[order as usize] = start + stride;
}

/// Has a server whose weight has grown wait no longer for its turn than one of its present weight
/// does. Its rank is the caller's to renew.
pub(super) fn hasten(t: &mut Tables<'_>, server: u32) {
    let s = &mut t.servers[server as usize];
    let latest = stride(s);
    for order in ORDERS {
        let now = t.spaces[s.space as usize].turn[order.heap(group(s))];
        let turn = &mut s.turn[order as usize];
        *turn = (*turn).min(now + latest);
    }
}

/// A server that a policy has picked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Its slot.
    pub server: u32,
    /// The order that it was the first of: it is charged a turn there. `None`: it was drawn.
    pub order: Option<Order>,
}

impl Pick {
    /// One that is drawn, and charged no turn.
    pub fn drawn(server: u32) -> Self {
        Self { server, order: None }
    }
}

/// The ready servers of one group of a namespace, as a policy sees them.
pub struct Ready<'a> {
    pub(super) t: &'a Tables<'a>,
    pub(super) space: u32,
    pub(super) group: Group,
    /// Numbers of the servers already tried for this request, in rising order.
    pub(super) tried: &'a [u64],
    /// Servers that the asker has connections to.
    pub(super) warm: &'a [ServerKey],
    /// Those on standby count as ready.
    pub(super) panic: bool,
    /// What the policy draws by: see [`Choice::seed`](super::Choice::seed).
    pub(super) seed: Option<u64>,
}

impl Ready<'_> {
    /// How many there are, the tried ones included.
    pub fn len(&self) -> usize {
        self.t.spaces[self.space as usize].ready[self.group as usize] as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first of an order that has not been tried.
    ///
    /// Costs as many steps as tried servers stand before it.
    #[inline]
    pub fn first(&self, order: Order) -> Option<Pick> {
        if self.panic {
            let (_, server) = self.head(order)?;
            return Some(Pick { server, order: Some(order) });
        }
        let entries = heap::entries(self.t, self.space, order.heap(self.group));
        let root = entries.first().filter(|root| !is_standby(root.key))?.server;
        let server = match self.untried(root) {
            true => root,
            false => self.next_best(order.heap(self.group), false)?.server,
        };
        Some(Pick { server, order: Some(order) })
    }

    /// The first of an order that has not been tried, those on standby included among the primaries,
    /// with its key.
    ///
    /// Costs as many steps more as there are ready backups, behind which the standby ones stand.
    #[cold]
    fn head(&self, order: Order) -> Option<(Key, u32)> {
        let ready = self.next_best(order.heap(self.group), false);
        let standby = match self.group {
            Group::Primary => self.next_best(order.heap(Group::Backup), true),
            Group::Backup => None,
        };
        ready.into_iter().chain(standby).map(|e| (plain(e.key), e.server)).min()
    }

    /// One of the warm servers, if it stands at the head of an order but for its turn, and has not
    /// been tried.
    pub fn warm(&self, order: Order) -> Option<Pick> {
        let least = if self.panic {
            self.head(order)?.0.major
        } else {
            let entries = heap::entries(self.t, self.space, order.heap(self.group));
            entries.first().filter(|root| !is_standby(root.key))?.key.major
        };
        let fits = |warm: &&ServerKey| {
            self.t.servers.get(warm.slot as usize).is_some_and(|s| {
                s.live != 0
                    && s.number == warm.number
                    && s.space == self.space
                    && self.may_take(s, warm.slot)
                    && order.key(s).major == least
                    && self.untried(warm.slot)
            })
        };
        let warm = self.warm.iter().find(fits)?;
        Some(Pick { server: warm.slot, order: Some(order) })
    }

    /// What is drawn by: see [`Choice::seed`](super::Choice::seed).
    #[inline]
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Draws a server by weight, with a number that is spread over 64 bits. `None` when the one drawn
    /// has been tried, or in a panic is not eligible, and when there are only backups: the caller may
    /// try another number. One that grows to its weight is drawn by that, and then refused as often as
    /// makes up for it: the sums need not follow it.
    pub fn draw(&self, number: u64) -> Option<u32> {
        let server = self.drawn(number, true)?;
        // Its place is in the high bits.
        let grown = match self.t.servers[server as usize].warmth {
            0 => true,
            warmth => (number & 0xff) < u64::from(warmth),
        };
        grown.then_some(server)
    }

    /// Who stands at a place in the sum of the weights of all servers, ready or not; the place is
    /// spread over 64 bits. `None` when that server is not ready or has been tried, or when there
    /// are only backups.
    pub fn stands_at(&self, place: u64) -> Option<u32> {
        self.drawn(place, false)
    }

    /// Who a key stops at on the ring of servers: the first choice of those that have not been tried.
    /// `None` when there are only backups.
    pub fn on_ring(&self, key: u64) -> Option<u32> {
        if self.group == Group::Backup {
            return None;
        }
        let accepts = |server: u32| {
            self.may_take(&self.t.servers[server as usize], server) && self.untried(server)
        };
        tree::read(self.t, self.space).stop(key, self.panic, accepts)
    }

    /// Requests on a server for its weight, as [`Order::Load`] compares them.
    pub fn load(&self, server: u32) -> u64 {
        load(&self.t.servers[server as usize])
    }

    fn drawn(&self, number: u64, of_ready: bool) -> Option<u32> {
        if self.group == Group::Backup {
            return None;
        }
        // Those on standby are among all.
        let server = tree::read(self.t, self.space).draw(number, of_ready && !self.panic)?;
        let s = &self.t.servers[server as usize];
        (self.may_take(s, server) && self.untried(server)).then_some(server)
    }

    /// Whether a server is of those that may be chosen, tried or not.
    fn may_take(&self, s: &Server, slot: u32) -> bool {
        if s.class == u32::from(class::READY) {
            return group(s) == self.group;
        }
        self.panic && self.group == Group::Primary && stands(self.t, slot)
    }

    fn untried(&self, server: u32) -> bool {
        self.tried.is_empty()
            || self.tried.binary_search(&self.t.servers[server as usize].number).is_err()
    }

    /// Looks at a heap's entries from the least up, past those that have been tried. The entry is one
    /// of standby or none is.
    #[cold]
    fn next_best(&self, id: usize, standby: bool) -> Option<HeapEntry> {
        let entries = heap::entries(self.t, self.space, id);
        let root = entries.first()?;
        if is_standby(root.key) == standby && self.untried(root.server) {
            return Some(*root);
        }
        let mut open = BinaryHeap::from([std::cmp::Reverse((root.key, 0))]);
        while let Some(std::cmp::Reverse((key, at))) = open.pop() {
            if is_standby(key) != standby {
                // Behind these there are no others.
                if is_standby(key) {
                    return None;
                }
            } else if self.untried(entries[at].server) {
                return Some(entries[at]);
            }
            let children = at * 4 + 1..(at * 4 + 5).min(entries.len());
            open.extend(children.map(|c| std::cmp::Reverse((entries[c].key, c))));
        }
        None
    }
}

impl Registry<'_> {
    /// Keeps the ready servers of a namespace in `order` from now on.
    pub(super) fn keep_order(&mut self, space: u32, order: Order) {
        let s = &mut self.g.spaces[space as usize];
        if s.orders & order.bit() != 0 {
            return;
        }
        s.orders |= order.bit();
        let mut next = s.member_head;
        while let Some(server) = self.g.servers.get(next as usize) {
            let (at, after) = (next, server.member_next);
            let alone = is_one(&self.g.spaces[space as usize]);
            if matches!(standing(server, alone), Standing::Ready | Standing::Standby) {
                enter_one(&mut self.g, space, at, order);
            }
            next = after;
        }
    }

    /// Starts virtual time again from 0 before it could overflow.
    pub(super) fn rewind(&mut self, space: u32) {
        if self.g.spaces[space as usize].turn.iter().all(|turn| *turn < TURN_LIMIT) {
            return;
        }
        let mut next = self.g.spaces[space as usize].member_head;
        while let Some(server) = self.g.servers.get(next as usize) {
            let (at, after) = (next, server.member_next);
            if stands(&self.g, at) {
                leave(&mut self.g, at);
            }
            self.g.servers[at as usize].turn = [0; 2];
            next = after;
        }
        self.g.spaces[space as usize].turn = [0; 4];
        let mut next = self.g.spaces[space as usize].member_head;
        while let Some(server) = self.g.servers.get(next as usize) {
            let (at, after) = (next, server.member_next);
            let alone = is_one(&self.g.spaces[space as usize]);
            if matches!(standing(server, alone), Standing::Ready | Standing::Standby) {
                enter(&mut self.g, at);
            }
            next = after;
        }
    }
}
