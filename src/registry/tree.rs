//! The primary servers of a namespace as a tree, in the order of a hash of their addresses.
//!
//! A balanced search tree (a treap: Seidel and Aragon 1996) in a run of the heaps' table. Each node
//! has the weight of all servers below it and that of the ready ones, so a server can be drawn by
//! weight, and one that is not ready be passed by, in logarithmic time. All of a namespace's servers
//! are in it, ready or not: the order and the sums by which keys are spread do not change when a server
//! fails. The order says nothing of who came first, and is the same on all nodes.
//!
//! Links are positions from the start of the run, so a run that moves takes its tree along. The run
//! has no holes: who leaves is replaced by the last one.

use super::order::group;
use super::{Group, Registry, heap};
use crate::shm::{HeapEntry, Key, NONE, Server, Slots, Tables, class, fault, heap as heap_id};

/// The bit of [`crate::shm::Space::orders`] that says that the tree is kept.
const KEPT: u8 = 1 << 2;

/// Bits of a position, of a server's slot, and of the sum of so many weights.
const LINK_BITS: u32 = 20;
const SUM_BITS: u32 = 36;

/// No position.
const NIL: u32 = (1 << LINK_BITS) - 1;

/// A node as it is worked with; as a [`HeapEntry`] it takes three words of 64 bits:
/// left 20, all 36, hash 8 · right 20, ready 36, hash 8 · server 20, top 5, hash 39.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Node {
    left: u32,
    right: u32,
    server: u32,
    /// 1 more than the binary logarithm, rounded up, of the largest weight below or here; 0 when all
    /// are 0.
    top: u32,
    /// Weight of the servers below and here.
    all: u64,
    /// The same of the ready ones.
    ready: u64,
    /// 55 bits; the high 32 are the server's place on the ring.
    hash: u64,
}

impl Node {
    #[inline]
    fn of(e: &HeapEntry) -> Self {
        let sum = |word: u64| word >> LINK_BITS & ((1 << SUM_BITS) - 1);
        let (a, b) = (e.key.major, e.key.minor);
        let c = u64::from(e.server) | u64::from(e.more) << 32;
        Self {
            left: a as u32 & NIL,
            right: b as u32 & NIL,
            server: c as u32 & NIL,
            top: (c >> LINK_BITS) as u32 & 31,
            all: sum(a),
            ready: sum(b),
            hash: c >> 25 << 16 | a >> 56 << 8 | b >> 56,
        }
    }

    fn entry(&self) -> HeapEntry {
        let word = |link: u32, sum: u64, hash: u64| u64::from(link) | sum << LINK_BITS | hash << 56;
        let major = word(self.left, self.all, self.hash >> 8 & 0xff);
        let minor = word(self.right, self.ready, self.hash & 0xff);
        let c = u64::from(self.server) | u64::from(self.top) << LINK_BITS | self.hash >> 16 << 25;
        HeapEntry { key: Key { major, minor }, server: c as u32, more: (c >> 32) as u32 }
    }
}

/// What a server adds to the sums: its weight, and its weight if it is ready.
fn weights(s: &Server) -> (u64, u64) {
    let ready = s.class == u32::from(class::READY);
    (u64::from(s.weight), if ready { u64::from(s.weight) } else { 0 })
}

fn top(weight: u64) -> u32 {
    if weight == 0 { 0 } else { weight.next_power_of_two().trailing_zeros() + 1 }
}

/// Where a server stands in the order: a hash of its printed address.
fn place(s: &Server) -> u64 {
    crate::balance::digest(&s.name[..usize::from(s.name_len).min(s.name.len())]) >> 9
}

/// A tree that is changed.
struct Tree<'a> {
    nodes: &'a mut [HeapEntry],
    servers: &'a [Server],
    slots: &'a mut [Slots],
    /// Nobody outside can make a tree deep by choosing addresses.
    secret: u64,
}

impl Tree<'_> {
    fn get(&self, at: u32) -> Node {
        Node::of(&self.nodes[at as usize])
    }

    fn set(&mut self, at: u32, node: &Node) {
        self.nodes[at as usize] = node.entry();
    }

    fn priority(&self, node: &Node) -> u64 {
        crate::balance::mix(node.hash ^ self.secret)
    }

    fn before(&self, a: &Node, b: &Node) -> bool {
        before(self.servers, a, b)
    }

    fn sums(&self, at: u32) -> (u64, u64, u32) {
        if at == NIL {
            return (0, 0, 0);
        }
        let n = self.get(at);
        (n.all, n.ready, n.top)
    }

    /// The weights of a node alone.
    fn own(&self, n: &Node) -> (u64, u64) {
        let (left, right) = (self.sums(n.left), self.sums(n.right));
        (n.all - left.0 - right.0, n.ready - left.1 - right.1)
    }

    /// Stores a node whose children have changed.
    fn pull(&mut self, at: u32, mut n: Node, own: (u64, u64)) {
        let (left, right) = (self.sums(n.left), self.sums(n.right));
        n.all = left.0 + right.0 + own.0;
        n.ready = left.1 + right.1 + own.1;
        n.top = left.2.max(right.2).max(top(own.0));
        self.set(at, &n);
    }

    /// Adds the node at `at`, which has no children. Returns the root.
    fn insert(&mut self, root: u32, at: u32) -> u32 {
        if root == NIL {
            return at;
        }
        let (mut n, mut new) = (self.get(root), self.get(at));
        if self.priority(&new) > self.priority(&n) {
            let own = self.own(&new);
            (new.left, new.right) = self.split(root, &new);
            self.pull(at, new, own);
            return at;
        }
        let own = self.own(&n);
        if self.before(&new, &n) {
            n.left = self.insert(n.left, at);
        } else {
            n.right = self.insert(n.right, at);
        }
        self.pull(root, n, own);
        root
    }

    /// Divides a tree into what is before a node and what is after it.
    fn split(&mut self, root: u32, by: &Node) -> (u32, u32) {
        if root == NIL {
            return (NIL, NIL);
        }
        let mut n = self.get(root);
        let own = self.own(&n);
        if self.before(by, &n) {
            let (before, after) = self.split(n.left, by);
            n.left = after;
            self.pull(root, n, own);
            (before, root)
        } else {
            let (before, after) = self.split(n.right, by);
            n.right = before;
            self.pull(root, n, own);
            (root, after)
        }
    }

    /// Joins two trees of which all of one is before all of the other.
    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NIL || b == NIL {
            return a.min(b);
        }
        let (mut first, mut second) = (self.get(a), self.get(b));
        if self.priority(&first) > self.priority(&second) {
            let own = self.own(&first);
            first.right = self.merge(first.right, b);
            self.pull(a, first, own);
            a
        } else {
            let own = self.own(&second);
            second.left = self.merge(a, second.left);
            self.pull(b, second, own);
            b
        }
    }

    /// Takes the node at `at` out. Returns the root.
    fn remove(&mut self, root: u32, at: u32, gone: &Node) -> u32 {
        let mut n = self.get(root);
        if root == at {
            return self.merge(n.left, n.right);
        }
        let own = self.own(&n);
        if self.before(gone, &n) {
            n.left = self.remove(n.left, at, gone);
        } else {
            n.right = self.remove(n.right, at, gone);
        }
        self.pull(root, n, own);
        root
    }

    /// Gives the node at `at` other weights.
    fn weigh(&mut self, root: u32, at: u32, node: &Node, to: (u64, u64)) {
        let n = self.get(root);
        if root == at {
            return self.pull(root, n, to);
        }
        let own = self.own(&n);
        let next = if self.before(node, &n) { n.left } else { n.right };
        self.weigh(next, at, node, to);
        self.pull(root, n, own);
    }

    /// Moves a node to another position. Returns the root.
    fn relocate(&mut self, root: u32, from: u32, to: u32) -> u32 {
        let moved = self.get(from);
        self.set(to, &moved);
        self.slots[moved.server as usize].at[heap::cell(heap_id::TREE)] = to;
        if root == from {
            return to;
        }
        let mut at = root;
        loop {
            let mut n = self.get(at);
            let link = if self.before(&moved, &n) { &mut n.left } else { &mut n.right };
            if *link == from {
                *link = to;
                self.set(at, &n);
                return root;
            }
            at = *link;
        }
    }
}

/// Equal hashes are next to never met; then the addresses decide.
fn before(servers: &[Server], a: &Node, b: &Node) -> bool {
    if a.hash != b.hash {
        return a.hash < b.hash;
    }
    let name = |n: &Node| {
        let s = &servers[n.server as usize];
        &s.name[..usize::from(s.name_len).min(s.name.len())]
    };
    name(a) < name(b)
}

fn view<'a>(t: &'a mut Tables<'_>, space: u32) -> (Tree<'a>, &'a mut u32) {
    let s = &mut t.spaces[space as usize];
    let extent = s.heaps[heap_id::TREE];
    let start = extent.start as usize;
    let tree = Tree {
        nodes: &mut t.heap[start..start + extent.len as usize],
        servers: t.servers,
        slots: t.slots,
        secret: t.header.secret,
    };
    (tree, &mut s.root)
}

fn link(root: u32) -> u32 {
    root.min(NIL)
}

fn position(t: &Tables<'_>, server: u32) -> Option<u32> {
    let at = t.slots[server as usize].at[heap::cell(heap_id::TREE)];
    (at != NONE).then_some(at)
}

/// Whether a server has its place in the tree of its namespace.
pub(super) fn belongs(t: &Tables<'_>, s: &Server) -> bool {
    t.spaces[s.space as usize].orders & KEPT != 0 && group(s) == Group::Primary && !s.is_name()
}

/// Puts a server where it belongs, with the weight and the class that it now has; does nothing
/// where no tree is kept.
pub(super) fn enter(t: &mut Tables<'_>, server: u32) {
    let s = &t.servers[server as usize];
    if !belongs(t, s) {
        return;
    }
    let (space, own, hash) = (s.space, weights(s), place(s));
    if let Some(at) = position(t, server) {
        let (mut tree, root) = view(t, space);
        let node = tree.get(at);
        return tree.weigh(*root, at, &node, own);
    }
    if !heap::reserve(t, space, heap_id::TREE) {
        // The table has an entry for each server in each order and the tree: this can't be.
        debug_assert!(false, "the heap table is full");
        return;
    }
    let at = t.spaces[space as usize].heaps[heap_id::TREE].len;
    t.spaces[space as usize].heaps[heap_id::TREE].len += 1;
    let (mut tree, root) = view(t, space);
    let (all, ready) = own;
    let node = Node { left: NIL, right: NIL, server, top: top(all), all, ready, hash };
    tree.set(at, &node);
    tree.slots[server as usize].at[heap::cell(heap_id::TREE)] = at;
    fault::point!("tree.longer");
    *root = tree.insert(link(*root), at);
    fault::point!("tree.placed");
}

/// Takes a server out; does nothing when it is not in.
pub(super) fn leave(t: &mut Tables<'_>, server: u32) {
    let Some(at) = position(t, server) else { return };
    let space = t.servers[server as usize].space;
    let (mut tree, root) = view(t, space);
    let gone = tree.get(at);
    let mut new = tree.remove(*root, at, &gone);
    fault::point!("tree.unlinked");
    let last = tree.nodes.len() as u32 - 1;
    if at != last {
        new = tree.relocate(new, last, at);
    }
    tree.slots[server as usize].at[heap::cell(heap_id::TREE)] = NONE;
    *root = if new == NIL { NONE } else { new };
    t.spaces[space as usize].heaps[heap_id::TREE].len -= 1;
    fault::point!("tree.shorter");
}

impl Registry<'_> {
    /// Keeps the servers of a namespace in a tree from now on.
    pub(super) fn keep_tree(&mut self, space: u32) {
        let s = &mut self.g.spaces[space as usize];
        if s.orders & KEPT != 0 {
            return;
        }
        s.orders |= KEPT;
        let mut next = s.member_head;
        while let Some(server) = self.g.servers.get(next as usize) {
            let (at, after) = (next, server.member_next);
            enter(&mut self.g, at);
            next = after;
        }
    }
}

/// A tree that is read.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    nodes: &'a [HeapEntry],
    root: u32,
}

/// The tree of a namespace.
pub(super) fn read<'a>(t: &'a Tables<'_>, space: u32) -> View<'a> {
    let s = &t.spaces[space as usize];
    let extent = s.heaps[heap_id::TREE];
    let start = extent.start as usize;
    View { nodes: &t.heap[start..start + extent.len as usize], root: link(s.root) }
}

impl View<'_> {
    fn get(&self, at: u32) -> Node {
        Node::of(&self.nodes[at as usize])
    }

    /// The server whose share of the sum of weights covers a number that is spread over 64 bits.
    pub(super) fn draw(&self, number: u64, of_ready: bool) -> Option<u32> {
        let sum = |at: u32| match at {
            NIL => 0,
            at if of_ready => self.get(at).ready,
            at => self.get(at).all,
        };
        let total = sum(self.root);
        if total == 0 {
            return None;
        }
        let mut rest = ((u128::from(number) * u128::from(total)) >> 64) as u64;
        let mut at = self.root;
        loop {
            let n = self.get(at);
            let (before, below) = (sum(n.left), sum(n.left) + sum(n.right));
            let own = sum(at) - below;
            if rest < before {
                at = n.left;
            } else if rest < before + own {
                return Some(n.server);
            } else {
                rest -= before + own;
                at = n.right;
            }
        }
    }
}

/// The search for the server that a key stops at.
///
/// Servers stand on a ring, by the hash of their addresses. A key begins at its own place and runs; past
/// each server it has a number of laps to go before it may stop there, drawn by the key and that
/// server alone. It stops where it has the shortest way, in distance for each unit of weight. So
/// whether a key prefers one server to another has nothing to do with the others: who goes gives its own
/// keys away, and gets the same ones back.
///
/// The laps are drawn by an exponential law with a mean of [`LAPS`](crate::balance::LAPS), so the
/// way to a server is close to exponential too, and the least of such ways falls to each by its weight
/// (rendezvous hashing as of Thaler and Ravishankar 1998, with weights). The ring is there to end the
/// search: among many servers the next ones that the key meets decide, and the rest of the tree is
/// not looked at. A server with a larger weight that is further off is found by the tops of the
/// branches.
struct Run<'a, F> {
    view: View<'a>,
    key: u64,
    /// Where the key begins.
    start: u64,
    /// Servers that are not ready are looked at too, and how many of them may still be.
    unready: Option<u32>,
    accepts: F,
    best: Option<(u64, u32)>,
}

/// Most servers that are not ready that a key looks at in a panic. All that are not switched off or
/// full are accepted then, so fewer will do, save where next to all are.
const LOOKS_IN_PANIC: u32 = 4096;

/// Places on the ring.
const RING: u64 = 1 << 32;
/// Fractions of a way for each unit of weight.
const SCALE: u32 = 16;

impl<F: Fn(u32) -> bool> Run<'_, F> {
    fn beats(&self, way: u64) -> bool {
        self.best.is_none_or(|(best, _)| way < best)
    }

    /// Runs through a branch in which nobody is nearer than `near`: through its servers from the
    /// start on, or through those before it.
    fn through(&mut self, at: u32, near: u64, onwards: bool) {
        if at == NIL {
            return;
        }
        let n = self.view.get(at);
        if n.top == 0 || (n.ready == 0 && self.unready.is_none_or(|looks| looks == 0)) {
            return;
        }
        if !self.beats((near << SCALE) >> (n.top - 1)) {
            return;
        }
        let place = n.hash >> 23;
        if (place >= self.start) != onwards {
            let next = if onwards { n.right } else { n.left };
            return self.through(next, near, onwards);
        }
        let here = if onwards { place - self.start } else { place + RING - self.start };
        self.through(n.left, near, onwards);
        self.stop(&n, here);
        self.through(n.right, here, onwards);
    }

    fn stop(&mut self, n: &Node, here: u64) {
        // First by what is at hand: the weight is no larger than the branch's top says.
        let laps = crate::balance::laps_of(self.key, n.hash);
        let way = (laps * RING + here) << SCALE;
        if !self.beats(way >> (n.top - 1)) {
            return;
        }
        let (all, ready) = self.view.own(n);
        let weight = match &mut self.unready {
            Some(looks) if ready == 0 && *looks > 0 => {
                *looks -= 1;
                all
            }
            _ => ready,
        };
        if weight > 0 && self.beats(way / weight) && (self.accepts)(n.server) {
            self.best = Some((way / weight, n.server));
        }
    }
}

impl View<'_> {
    fn own(&self, n: &Node) -> (u64, u64) {
        let sums = |at: u32| match at {
            NIL => (0, 0),
            at => (self.get(at).all, self.get(at).ready),
        };
        let (left, right) = (sums(n.left), sums(n.right));
        (n.all - left.0 - right.0, n.ready - left.1 - right.1)
    }

    /// The server that a key stops at, of those that are accepted; `panic`: not of the ready ones alone.
    pub(super) fn stop(&self, key: u64, panic: bool, accepts: impl Fn(u32) -> bool) -> Option<u32> {
        let unready = panic.then_some(LOOKS_IN_PANIC);
        let mut run = Run { view: *self, key, start: key >> 32, unready, accepts, best: None };
        run.through(self.root, 0, true);
        run.through(self.root, RING - run.start, false);
        run.best.map(|(_, server)| server)
    }
}

/// Whether the tree of a namespace is in order and agrees with the records.
pub(super) fn check(t: &Tables<'_>, i: u32) -> Result<(), String> {
    let s = &t.spaces[i as usize];
    let due = t.servers.iter().filter(|s| s.live != 0 && s.space == i && belongs(t, s)).count();
    let tree = read(t, i);
    if tree.nodes.len() != due || (s.root == NONE) != (due == 0) {
        return Err(format!("tree of namespace {i}: {} nodes, {due} expected", tree.nodes.len()));
    }
    let mut last = None;
    let (n, _) = check_below(t, &tree, tree.root, &mut last)
        .map_err(|e| format!("tree of namespace {i}: {e}"))?;
    if n != due {
        return Err(format!("tree of namespace {i}: {n} of {due} nodes are reached"));
    }
    Ok(())
}

/// Returns how many nodes there are, and their sums.
fn check_below(
    t: &Tables<'_>,
    tree: &View<'_>,
    at: u32,
    last: &mut Option<Node>,
) -> Result<(usize, (u64, u64, u32)), String> {
    if at == NIL {
        return Ok((0, (0, 0, 0)));
    }
    let n = tree.get(at);
    let s = &t.servers[n.server as usize];
    let who = super::address::printed(s);
    let left = check_below(t, tree, n.left, last)?;
    if last.is_some_and(|last| !before(t.servers, &last, &n)) {
        return Err(format!("{who} is out of order"));
    }
    *last = Some(n);
    let right = check_below(t, tree, n.right, last)?;
    let (all, ready) = weights(s);
    let highest = left.1.2.max(right.1.2).max(top(all));
    let all = all + left.1.0 + right.1.0;
    let ready = ready + left.1.1 + right.1.1;
    if (n.all, n.ready, n.top) != (all, ready, highest) {
        return Err(format!("{who} has the sums {n:?}, not {all}, {ready}, {highest}"));
    }
    if n.hash != place(s) || position(t, n.server) != Some(at) {
        return Err(format!("{who} is not at its place"));
    }
    let secret = t.header.secret;
    let priority = |n: &Node| crate::balance::mix(n.hash ^ secret);
    let rises = |child: u32| child != NIL && priority(&tree.get(child)) > priority(&n);
    if rises(n.left) || rises(n.right) {
        return Err(format!("{who} is below its place"));
    }
    Ok((left.0 + right.0 + 1, (all, ready, highest)))
}
