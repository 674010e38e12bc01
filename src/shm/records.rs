//! The records of a zone.
//!
//! Plain integers only: any bit pattern is a valid value, so nothing that another process (or a
//! crash) left here can make reading it undefined behaviour. Indexes are `u32`, [`NONE`] is "no
//! index". All times are milliseconds; `_mono` is the monotonic clock, which all processes of a
//! machine share, `_wall` is the time since the epoch, kept only to be shown.

/// No index.
pub const NONE: u32 = u32::MAX;

/// Longest name of a namespace, in bytes.
pub const SPACE_NAME_MAX: usize = 64;

/// Longest printed address of a server: `unix:` and a full `sun_path`, which ends with a zero byte.
pub const NAME_MAX: usize = 112;

/// Longest path that health checks ask one server for, in bytes.
pub const HEALTH_PATH_MAX: usize = 48;

/// The classes a server can be in: exactly one at a time, the first that applies in this order of
/// precedence, save that [`class::READY`] means that none does, and that names are in the last two
/// whatever else they are.
pub mod class {
    /// In rotation.
    pub const READY: u8 = 0;
    /// Switched off by hand, or `down` in the configuration.
    pub const DISABLED: u8 = 1;
    /// Silent for longer than `heartbeat_ttl`.
    pub const EXPIRED: u8 = 2;
    /// Failed its health checks.
    pub const UNHEALTHY: u8 = 3;
    /// Finishing what it has.
    pub const DRAINING: u8 = 4;
    /// Weight 0: no new requests.
    pub const WEIGHT_ZERO: u8 = 5;
    /// Failed `max_fails` times within `fail_timeout`.
    pub const FAILED: u8 = 6;
    /// Carries `max_conns` requests.
    pub const AT_MAX: u8 = 7;
    /// Not a server but a name, whose addresses are servers of their own.
    pub const NAME: u8 = 8;
    /// A name that has no address.
    pub const UNRESOLVED: u8 = 9;
    /// Number of classes.
    pub const COUNT: usize = 10;
}

/// Bits of [`Server::flags`].
pub mod flag {
    /// Comes from a `server` line: never expires, can't be removed through the API.
    pub const STATIC: u32 = 1;
    /// Used only when no other server is eligible.
    pub const BACKUP: u32 = 1 << 1;
    /// No new requests, the running ones finish.
    pub const DRAINING: u32 = 1 << 2;
    /// Switched off by hand or by `down`.
    pub const DISABLED: u32 = 1 << 3;
    /// Switched off by the cleanup because it was silent; ends with the next heartbeat.
    pub const SILENCED: u32 = 1 << 4;
    /// Known to be silent for longer than the TTL: it has left the list of the fresh ones.
    pub const EXPIRED: u32 = 1 << 5;
    /// Failed its health checks.
    pub const UNHEALTHY: u32 = 1 << 6;
    /// `fail_timeout` is over: one request may try the server again.
    pub const RETRY: u32 = 1 << 7;
    /// The `server` line said `down` when it was last read.
    pub const CONFIGURED_DOWN: u32 = 1 << 8;
    /// Scratch mark of a reconciliation: seen in the new configuration.
    pub const SEEN: u32 = 1 << 9;
    /// The last sign of life came to another node, and through Redis to this one.
    pub const AFAR: u32 = 1 << 10;
    /// Scratch mark of a snapshot from Redis: not yet found in it.
    pub const UNSEEN: u32 = 1 << 11;
    /// So many nodes share the server that their ties are broken apart: see `registry::order`.
    pub const MANY_NODES: u32 = 1 << 13;
    /// It was removed, and the slot is kept to tell Redis so, and for a while after. It is not `live`
    /// then; its namespace stands in `route` and `health_path`.
    pub const DEPARTED: u32 = 1 << 12;
    /// Of a name: the resolver has not answered when it was asked last, and the log says so.
    pub const LOST: u32 = 1 << 16;
    /// Of a name: the last answer was that there is no such name, or no address, and the log says so.
    pub const NOT_FOUND: u32 = 1 << 17;
}

/// Bits of [`Server::pending`]: what Redis is still to be told of a server.
pub mod pending {
    /// It was registered.
    pub const ADD: u32 = 1;
    /// Its weight was set.
    pub const WEIGHT: u32 = 1 << 1;
    /// Its limit of requests was set.
    pub const MAX_CONNS: u32 = 1 << 2;
    /// It was switched on or off, or drained.
    pub const SWITCH: u32 = 1 << 3;
    /// It gave a sign of life here.
    pub const BEAT: u32 = 1 << 4;
    /// It was removed: [`flag::DEPARTED`](super::flag::DEPARTED).
    pub const REMOVE: u32 = 1 << 5;
    /// It has been silent for so long that it is to be forgotten, if the others agree.
    pub const FORGET: u32 = 1 << 6;
    /// Its other settings were set: `registry::Settings`.
    pub const SETTINGS: u32 = 1 << 7;
    /// With `REMOVE`: it was told before, and Redis has lost it.
    pub const AGAIN: u32 = 1 << 8;
    /// Everything there is to say of a server.
    pub const ALL: u32 = ADD | WEIGHT | MAX_CONNS | SWITCH | BEAT | SETTINGS;
}

/// Places in [`Server::timeouts_ms`].
pub mod timeout {
    /// `connect_timeout`.
    pub const CONNECT: usize = 0;
    /// `send_timeout`.
    pub const SEND: usize = 1;
    /// `read_timeout`.
    pub const READ: usize = 2;
}

/// Places in [`Server::changed`].
pub mod changed {
    /// The last registration; of a departed server, its removal.
    pub const ADD: usize = 0;
    /// The weight.
    pub const WEIGHT: usize = 1;
    /// The limit of requests.
    pub const MAX_CONNS: usize = 2;
    /// On, off, draining.
    pub const SWITCH: usize = 3;
    /// The other settings of a registration.
    pub const SETTINGS: usize = 4;
    /// Number of places.
    pub const COUNT: usize = 5;
}

/// What [`Server::changed`] is ahead of the monotonic clock, so that times before the boot of the
/// machine have a place there: some 139 years.
pub const AGES: u64 = 1 << 42;

/// Bits of [`Space::flags`].
pub mod space_flag {
    /// Named in the configuration: stays when its last server goes.
    pub const CONFIGURED: u16 = 1;
    /// So many servers are out at once that requests go to all of them: see `registry::panic`.
    pub const PANIC: u16 = 1 << 1;
    /// New servers are unhealthy until their health checks have passed.
    pub const INITIAL_DOWN: u16 = 1 << 2;
    /// New servers are unhealthy until their first health check has passed.
    pub const INITIAL_PROBE: u16 = 1 << 3;
    /// All bits from here on: which health checks the namespace has; 0: none.
    pub const CHECK_SHIFT: u16 = 4;
}

/// Values of [`Server::disabled_reason`].
pub mod reason {
    /// Not disabled.
    pub const NONE: u16 = 0;
    /// `toggle` with `action=disable`.
    pub const MANUAL: u16 = 1;
    /// Silent for longer than `heartbeat_ttl`.
    pub const HEARTBEAT_TIMEOUT: u16 = 2;
    /// `down` on the `server` line.
    pub const CONFIGURED: u16 = 3;
}

/// The heaps of a namespace, as indexes of [`Space::heaps`].
pub mod heap {
    /// By load, then turn: primary servers; the backups follow, and among these, behind all of them,
    /// the servers that only a panic makes eligible.
    pub const LOAD: usize = 0;
    /// By turn alone: primary servers; the backups follow, as above.
    pub const TURN: usize = 2;
    /// Failed servers by the time when they may be tried again; those that are expired as well too.
    pub const RETRY: usize = 4;
    /// No heap, but a run of the same table: all primary servers as a tree, see `registry::tree`.
    pub const TREE: usize = 5;
    /// Number of runs.
    pub const COUNT: usize = 6;
}

/// Bits of [`Header::dirty`].
pub mod dirty {
    /// A holder of the lock panicked: what is derived must be rebuilt.
    pub const DERIVED: u32 = 1;
    /// Counts outside the ledger are being dropped: cut short, it is done again from the start.
    pub const RECOUNT: u32 = 1 << 1;
}

/// Room in [`Header::warming`].
pub const WARMING: usize = 64;

/// A place for a whole record while it is replaced: see [`Header::journal_target`].
pub const JOURNAL_EMPTY: u32 = NONE;

/// The head of a zone.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// Says that this is a zone of ours.
    pub magic: u64,
    /// [`super::LAYOUT_VERSION`] of the code that made it.
    pub layout_version: u32,
    /// Not 0: the zone has a successor, and nothing is to be changed here any more.
    pub retired: u32,
    /// Length of the arena in bytes.
    pub size: u64,
    /// Key of the hash tables, random for each zone.
    pub secret: u64,
    /// Number for the next server; never used again.
    pub next_number: u64,
    /// Incarnation for the next worker; never used again.
    pub next_incarnation: u64,
    /// Counts the configurations that used this zone; newer workers have a higher one.
    pub cycle: u64,
    /// Changes of any kind but counts and heartbeats.
    pub version: u64,
    /// The elected worker: its incarnation, 0 when there is none.
    pub leader_incarnation: u64,
    /// The elected worker: its slot.
    pub leader_slot: u32,
    /// [`dirty`] bits; not 0: the zone must be repaired before it is read.
    pub dirty: u32,
    /// The server that `journal` is to be copied to, [`JOURNAL_EMPTY`] when there is none.
    pub journal_target: u32,
    /// Grows when counts outside the ledger were dropped: every worker states its own again.
    pub recount: u32,
    /// First free server slot.
    pub free_server: u32,
    /// First free namespace slot.
    pub free_space: u32,
    /// First free ledger entry.
    pub free_ledger: u32,
    /// One more than the highest server slot ever used.
    pub high_water: u32,
    /// One more than the highest namespace slot ever used.
    pub space_high_water: u32,
    /// Servers in the zone.
    pub servers: u32,
    /// Namespaces in the zone.
    pub spaces: u32,
    /// Entries of the heap table in use, counted from its start.
    pub heap_used: u32,
    /// [`space_flag`] bits of namespaces that come into being: their health checks.
    pub checks: u32,
    /// The new content of a record, valid while `journal_target` names it.
    pub journal: Server,
    /// Servers that grow to their weight, as far as there is room: see `registry::warm`. Derived.
    pub warming: [u32; WARMING],
    /// How many there are.
    pub warming_len: u32,
    /// Which of them is looked at next.
    pub warming_next: u32,
    /// What the state file has of this zone.
    pub filed: Filed,
    /// What this zone and Redis know of each other.
    pub shared: Shared,
}

/// What a zone and Redis know of each other. Kept in the zone, so that a worker that takes over the
/// exchange goes on where a dead one stopped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Not 0: the configuration names a Redis.
    pub on: u32,
    /// Not 0: the last exchange succeeded.
    pub connected: u32,
    /// The epoch of the data in Redis that this zone has followed; 0: none yet.
    pub epoch: u64,
    /// The run of it: another one means that Redis has lost something; 0: none yet.
    pub run: u64,
    /// Version up to which records have been read.
    pub cursor: u64,
    /// Number up to which signs of life have been read.
    pub beat_cursor: u64,
    /// Number up to which counts have been read.
    pub total_cursor: u64,
    /// Monotonic time up to which all signs of life that Redis knew are known here.
    pub heard_until: u64,
    /// Monotonic time of the first complete snapshot after a time without Redis.
    pub resumed: u64,
    /// The time of the last exchange, since the epoch.
    pub synced_wall: u64,
    /// Milliseconds that the last change from another node took to come here.
    pub lag: u64,
    /// Monotonic time since when no exchange has succeeded, while the log says so; 0: it does not.
    pub lost_since: u64,
    /// Nodes that take part, this one included.
    pub nodes: u32,
    /// Not 0: an exchange has succeeded at least once, and the log says so.
    pub known: u32,
    /// Not 0: a snapshot is being read, and this is to be done with what is not in it: see
    /// `registry::remote`.
    pub unseen: u32,
    /// Servers that Redis is still to be told of; derived.
    pub queued: u32,
    /// The first of these; derived.
    pub queue_head: u32,
    /// The last of these; derived.
    pub queue_tail: u32,
    /// The first of the departed servers that Redis has been told of; derived.
    pub kept_head: u32,
    /// The last of these; derived.
    pub kept_tail: u32,
}

/// What the state file has of a zone. None of it is needed to serve a request, so that a change of
/// it that is cut short costs a needless write at most.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Filed {
    /// This zone among all that ever write the file: random.
    pub instance: u64,
    /// [`Header::version`] that is in the file; [`NEVER_FILED`] when none is.
    pub version: u64,
    /// Which path that is, as a hash; 0: none.
    pub path: u64,
    /// Which file is there, as a hash of its inode, size and time; 0: none.
    pub identity: u64,
    /// Hash of the servers in it.
    pub content: u64,
    /// Another zone whose file was read in; 0: none.
    pub other: u64,
    /// [`Header::next_number`] of that zone in the file: a server of a lower number was read.
    pub other_next: u64,
    /// Servers of a lower number were read from that zone's file at the start.
    pub restored: u64,
    /// A path with a bad file that can't be moved aside, and is not overwritten; 0: none.
    pub refused: u64,
    /// Not 0: the last try to write failed, and the log says so already.
    pub failing: u64,
}

/// No version of the zone is in the file.
pub const NEVER_FILED: u64 = u64::MAX;

/// A run of entries in the heap table.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Extent {
    /// First entry.
    pub start: u32,
    /// Entries reserved.
    pub cap: u32,
    /// Entries in use.
    pub len: u32,
}

/// A namespace.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Space {
    /// 1: in use. Written last when it comes into being, first when it goes.
    pub live: u32,
    /// Grows each time the slot is freed.
    pub generation: u32,
    /// [`space_flag`] bits.
    pub flags: u16,
    /// Which orders are kept: bit 0 load, bit 1 turn, bit 2 the tree.
    pub orders: u8,
    /// Length of `name`.
    pub name_len: u8,
    /// Next in the hash chain, or in the list of free ones.
    pub hash_next: u32,
    /// First of the servers, in the order of their numbers.
    pub member_head: u32,
    /// Last of the servers.
    pub member_tail: u32,
    /// Servers in all, names among them.
    pub members: u32,
    /// Servers that come from `server` lines.
    pub statics: u32,
    /// The server whose heartbeat is the oldest of those not known to have expired.
    pub fresh_head: u32,
    /// The server that was heard of last.
    pub fresh_tail: u32,
    /// How many servers are in each class.
    pub classes: [u32; class::COUNT],
    /// Ready servers that are no backups, and that are.
    pub ready: [u32; 2],
    /// The weight of all servers that were ready since there was none: [`NONE`] before the first,
    /// 0 when they differ.
    pub common_weight: u32,
    /// The root of the tree, as a position in its run.
    pub root: u32,
    /// Virtual time of each order, for primaries and backups: see `registry::order`.
    pub turn: [u64; 4],
    /// The heaps.
    pub heaps: [Extent; heap::COUNT],
    /// The name, without terminator.
    pub name: [u8; SPACE_NAME_MAX],
}

impl Space {
    /// How many members are names, whose addresses are members beside them.
    #[inline]
    pub fn names(&self) -> u32 {
        self.classes[usize::from(class::NAME)] + self.classes[usize::from(class::UNRESOLVED)]
    }
}

impl Server {
    /// Its slot is kept though it was removed.
    #[inline]
    pub fn is_departed(&self) -> bool {
        self.flags & flag::DEPARTED != 0
    }

    /// It is no server itself but a name: the registration of what the resolver finds.
    #[inline]
    pub fn is_name(&self) -> bool {
        self.family == 0
    }

    /// It is an address that a name was resolved to, and is there because of that alone.
    #[inline]
    pub fn is_of_name(&self) -> bool {
        self.parent != NONE
    }
}

/// A server.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Server {
    /// 1: in use. Written last when it comes into being, first when it goes.
    pub live: u32,
    /// Grows each time the slot is freed.
    pub generation: u32,
    /// Never used again in this zone.
    pub number: u64,
    /// [`flag`] bits.
    pub flags: u32,
    /// One of [`class`]; derived.
    pub class: u32,
    /// Requests on the server now, over all workers of this node; derived from the ledger.
    pub conns: u32,
    /// Those of `conns` that found no room in the ledger.
    pub unledgered: u32,
    /// 0 to 65535.
    pub weight: u32,
    /// 0: no limit.
    pub max_conns: u32,
    /// Requests that the other nodes have on the server, in 1/256: the sum of their means.
    pub others: u32,
    /// The same as the balancer takes it: follows `others` in steps.
    pub others_damped: u32,
    /// Last sign of life.
    pub heartbeat_mono: u64,
    /// Requests on the server times milliseconds since `busy_from`, up to `busy_until`.
    pub busy: u64,
    /// Monotonic time up to which `busy` counts.
    pub busy_until: u64,
    /// The namespace.
    pub space: u32,
    /// Failures that count towards `max_fails`.
    pub fail_marks: u32,
    /// Turn in each order: see `registry::order`.
    pub turn: [u64; 2],
    /// Requests sent here since the start or the last reset.
    pub requests: u64,
    /// Failures since the start or the last reset.
    pub fails: u32,
    /// When it last answered a request well: the low half of the monotonic clock.
    pub served_mono: u32,
    /// When it last failed.
    pub accessed_mono: u64,
    /// When it last failed or was tried again after a failure.
    pub checked_mono: u64,
    /// 0: never taken out for failures.
    pub max_fails: u32,
    /// How long a failure counts, and how long the server then rests.
    pub fail_timeout_ms: u32,

    /// Next in the hash chain, or in the list of free ones.
    pub hash_next: u32,
    /// Servers of the namespace, by number.
    pub member_prev: u32,
    /// Servers of the namespace, by number.
    pub member_next: u32,
    /// Servers of the namespace, by heartbeat.
    pub fresh_prev: u32,
    /// Servers of the namespace, by heartbeat.
    pub fresh_next: u32,

    /// Address family: 4, 6, 1 for a unix socket, or 0 for a name, which has no address itself.
    pub family: u8,
    /// Length of `name`.
    pub name_len: u8,
    /// Port in host order; 0 for a unix socket.
    pub port: u16,
    /// The address; the first four bytes for IPv4.
    pub ip: [u8; 16],
    /// The address, or the name, as printed: `host:port`.
    pub name: [u8; NAME_MAX],

    /// One of [`reason`].
    pub disabled_reason: u16,
    /// While it grows to its weight: how much of it it has, in 1/256; 0: all of it.
    pub warmth: u16,
    /// Of an address that a name was resolved to: the slot of that name; else [`NONE`].
    pub parent: u32,
    /// Last sign of life.
    pub heartbeat_wall: u64,
    /// First registration.
    pub created_wall: u64,
    /// Last change but counts and heartbeats.
    pub updated_wall: u64,
    /// 0 when enabled.
    pub disabled_wall: u64,

    /// [`pending`] bits.
    pub pending: u32,
    /// Among the queued, or the kept departed ones.
    pub queue_prev: u32,
    /// Among the queued, or the kept departed ones.
    pub queue_next: u32,
    /// Grows with each change that Redis is to be told of.
    pub edition: u32,
    /// The mean of this node's requests that Redis has, in thousandths.
    pub told_mean: u32,
    /// Milliseconds that a new or recovered server takes to grow to its weight; 0: none.
    pub slow_start_ms: u32,
    /// Version of its record in Redis; 0: none is known.
    pub record_version: u64,
    /// When each part last changed, on any node: monotonic milliseconds and [`AGES`]. Indexed by
    /// [`changed`].
    pub changed: [u64; changed::COUNT],
    /// Monotonic time when `busy` was last 0.
    pub busy_from: u64,

    /// When it began to grow to its weight.
    pub started_mono: u64,
    // Room for what the same record will carry next, so that a zone keeps its layout.
    /// Bytes to and from the server.
    pub bytes: [u64; 2],
    /// Responses by class, 1xx to 5xx.
    pub responses: [u64; 5],
    /// Name for sticky routes.
    pub route: [u8; 32],
    /// Free text for people.
    pub label: [u8; 8],
    /// Of a name: the first of its addresses; of one of these: the next; [`NONE`] when there is no
    /// more. Derived.
    pub next_address: u32,
    /// Milliseconds that requests to it wait for a connection, between two writes and between two
    /// reads; 0: as the location says. Indexed by [`timeout`].
    pub timeouts_ms: [u32; 3],
    /// What health checks ask for instead of their `uri`; empty: that. Ends at its first zero byte.
    pub health_path: [u8; HEALTH_PATH_MAX],
}

/// What health checks found about the server in the slot of the same index; all zero before the
/// first.
///
/// Apart from the records, because requests never look at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Monotonic time when the last check began; 0: none has.
    pub begun_mono: u64,
    /// Monotonic time when one ended last; earlier than `begun_mono`: one is under way.
    pub ended_mono: u64,
    /// How many have ended.
    pub checks: u32,
    /// How many of these failed.
    pub fails: u32,
    /// Milliseconds that the last one took.
    pub latency_ms: u32,
    /// How many passed in a row, or, below 0, failed.
    pub row: i16,
    /// Why the last one failed, as `registry::health` writes it; 0: it passed.
    pub trouble: u16,
}

/// Where a server stands in the heaps and the tree: positions, [`NONE`] when in none.
///
/// Apart from the records, because a heap that moves its entries touches many of these.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slots {
    /// In the load, turn and retry heaps, and in the tree.
    pub at: [u32; 4],
}

/// What a heap is ordered by: `major`, then `minor`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Key {
    /// Compared first.
    pub major: u64,
    /// Compared when `major` is equal.
    pub minor: u64,
}

/// One entry of a heap.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeapEntry {
    /// Its rank.
    pub key: Key,
    /// The server's slot.
    pub server: u32,
    /// Used by the nodes of trees alone, which give the other fields a meaning of their own.
    pub more: u32,
}

/// The requests that one worker has on one server.
///
/// Together these are the truth about in-flight counts: [`Server::conns`] is their sum, and what a
/// dead worker leaves here is taken back.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LedgerEntry {
    /// The worker's incarnation; 0 when the entry is free.
    pub incarnation: u64,
    /// The server's slot.
    pub server: u32,
    /// The server's generation.
    pub generation: u32,
    /// Requests.
    pub count: u32,
    /// The worker's slot.
    pub worker: u32,
    /// The worker's entries.
    pub prev: u32,
    /// The worker's entries, or the list of free ones.
    pub next: u32,
}

/// A worker process.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WorkerRecord {
    /// Never used again; 0 when the slot is free.
    pub incarnation: u64,
    /// [`Header::cycle`] when the worker started.
    pub cycle: u64,
    /// First of its ledger entries.
    pub ledger_head: u32,
    /// Requests that found no room in the ledger.
    pub unledgered: u32,
    /// Process id, for messages only.
    pub pid: u32,
    /// Not 0: it is shutting down and stands for no election.
    pub leaving: u32,
}
