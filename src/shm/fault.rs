//! Deaths on order: marked points at which a process kills itself, for tests.
//!
//! What a killed worker leaves behind must be the old state or the new one, wherever it was killed.
//! So each change of a zone is strewn with `fault::point!("name")`. In a build with `--cfg fault`
//! (`scripts/build --cfg fault`) and in the unit tests a process that passes a point which is armed
//! dies there by SIGKILL. In any other build a point is nothing at all: no instruction, no data.
//!
//! What is armed lies in memory that the master shares with the processes that it forks: a test
//! tells one worker by HTTP, and whoever passes the point next dies. In a unit test it is the
//! process's own, so tests that run side by side do not kill each other.

/// Marks a point; see the file `shm/fault.rs`. A name that [`POINTS`] has not is an error of the
/// compiler.
macro_rules! point {
    ($name:literal) => {
        #[cfg(any(fault, test))]
        {
            const AT: usize = $crate::shm::fault::index($name);
            $crate::shm::fault::pass(AT);
        }
    };
}
pub(crate) use point;

#[cfg(any(fault, test))]
pub use armed::*;

#[cfg(any(fault, test))]
mod armed {
    use std::ptr::{NonNull, null_mut};
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicPtr, AtomicU32};

    /// All points there are. What stands before the full stop is the change that is cut short.
    pub const POINTS: &[&str] = &[
        "lock.taken",
        "lock.release",
        "add.slot",
        "add.written",
        "add.live",
        "add.indexed",
        "add.member",
        "add.fresh",
        "add.classed",
        "names.linked",
        "names.unlinked",
        "names.added",
        "names.removed",
        "names.follows",
        "names.dropped",
        "names.own",
        "remove.dead",
        "remove.declassed",
        "remove.stale",
        "remove.detached",
        "remove.unindexed",
        "remove.freed",
        "queue.unlinked",
        "queue.beat",
        "depart.marked",
        "depart.unlinked",
        "depart.queued",
        "depart.forgotten",
        "journal.written",
        "journal.marked",
        "journal.half",
        "journal.copied",
        "journal.empty",
        "adopt.left",
        "adopt.fresh",
        "class.left",
        "class.entered",
        "fresh.linked",
        "stale.unlinked",
        "heap.longer",
        "heap.placed",
        "heap.shorter",
        "heap.moved",
        "heap.compacting",
        "tree.longer",
        "tree.placed",
        "tree.unlinked",
        "tree.shorter",
        "heartbeat.noted",
        "heartbeat.stale",
        "expire.stale",
        "expire.flagged",
        "space.slot",
        "space.live",
        "space.indexed",
        "space.unindexed",
        "space.dead",
        "join.claimed",
        "join.recorded",
        "leave.resigned",
        "leave.outside",
        "leave.vacant",
        "reap.found",
        "reap.entry",
        "reap.settled",
        "reap.vacant",
        "entry.unlinked",
        "entry.freed",
        "recount.begun",
        "recount.half",
        "recount.counted",
        "restate.one",
        "book.again",
        "book.popped",
        "book.written",
        "book.chained",
        "book.outside",
        "unbook.last",
        "unbook.outside",
        "unbook.counted",
        "elect.half",
        "take.booked",
        "take.charged",
        "take.ranked",
        "release.unbooked",
        "release.marked",
        "sweep.server",
        "sweep.slice",
        "reset.server",
        "cycle.next",
        "succeed.begun",
        "succeed.server",
        "succeed.done",
        "succeed.retired",
        "configure.begun",
        "configure.space",
        "configure.server",
        "configure.removed",
        "configure.forgotten",
        "configure.done",
        "checks.spaces",
        "checks.server",
        "checks.claimed",
        "checks.noted",
        "repair.begun",
        "repair.journal",
        "repair.vacant",
        "repair.ledger",
        "repair.freed",
        "repair.space",
        "repair.server",
        "repair.linked",
        "repair.class",
        "repair.fresh",
        "repair.swept",
    ];

    /// Most deaths that can be ordered at a time.
    const ORDERS: usize = 32;

    /// The master, or the process that reads the configuration.
    pub const MASTER: u32 = 1;
    /// A process that handles requests.
    pub const WORKER: u32 = 2;

    /// The place of a point in [`POINTS`].
    ///
    /// # Panics
    ///
    /// When there is none of that name: while the constant is evaluated, by the compiler.
    pub const fn index(name: &str) -> usize {
        let mut at = 0;
        while at < POINTS.len() {
            let (known, wanted) = (POINTS[at].as_bytes(), name.as_bytes());
            let mut same = known.len() == wanted.len();
            let mut i = 0;
            while same && i < known.len() {
                same = known[i] == wanted[i];
                i += 1;
            }
            if same {
                return at;
            }
            at += 1;
        }
        panic!("no such point");
    }

    /// One death to come.
    struct Order {
        point: AtomicU32,
        /// [`MASTER`], [`WORKER`], both added (anybody), or a process id above these.
        who: AtomicU32,
        /// Passings until then; 0: it has come.
        left: AtomicU32,
    }

    struct State {
        orders: [Order; ORDERS],
        /// Orders in all.
        len: AtomicU32,
        /// Passings of each point by masters and by workers.
        passed: [[AtomicU32; 2]; POINTS.len()],
    }

    #[expect(clippy::declare_interior_mutable_const, reason = "the start of each, copied")]
    const NO_ORDER: Order =
        Order { point: AtomicU32::new(0), who: AtomicU32::new(0), left: AtomicU32::new(0) };

    static OWN: State = State {
        orders: [NO_ORDER; ORDERS],
        len: AtomicU32::new(0),
        passed: [const { [const { AtomicU32::new(0) }; 2] }; POINTS.len()],
    };
    static SHARED: AtomicPtr<State> = AtomicPtr::new(null_mut());
    static ROLE: AtomicU32 = AtomicU32::new(WORKER);

    fn state() -> &'static State {
        // SAFETY: null, or a mapping that `share` made and that stays.
        NonNull::new(SHARED.load(SeqCst)).map_or(&OWN, |shared| unsafe { shared.as_ref() })
    }

    /// Shares what is armed with the processes that this one forks from now on; called again it
    /// does nothing.
    #[cfg(fault)]
    pub fn share() {
        if !SHARED.load(SeqCst).is_null() {
            return;
        }
        // SAFETY: a new mapping, aligned to pages, that is never unmapped; zero is a valid value of
        // every word in a State.
        unsafe {
            let memory = libc::mmap(
                null_mut(),
                size_of::<State>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if memory != libc::MAP_FAILED {
                SHARED.store(memory.cast(), SeqCst);
            }
        }
    }

    /// Says what this process is: [`MASTER`] or [`WORKER`].
    #[cfg(fault)]
    pub fn set_role(role: u32) {
        ROLE.store(role, SeqCst);
    }

    /// This process is at a point: counts it, and dies when that was ordered.
    pub fn pass(point: usize) {
        let (state, role) = (state(), ROLE.load(SeqCst));
        state.passed[point][usize::from(role == WORKER)].fetch_add(1, SeqCst);
        let len = state.len.load(SeqCst) as usize;
        for order in &state.orders[..len.min(ORDERS)] {
            let who = order.who.load(SeqCst);
            let for_me =
                if who > MASTER + WORKER { who == std::process::id() } else { who & role != 0 };
            if !for_me || order.left.load(SeqCst) == 0 {
                continue;
            }
            // The first that is open for this process; what stands after it waits.
            if order.point.load(SeqCst) == point as u32 {
                let passing = |left: u32| left.checked_sub(1);
                if order.left.fetch_update(SeqCst, SeqCst, passing) == Ok(1) {
                    die();
                }
            }
            return;
        }
    }

    fn die() -> ! {
        loop {
            // SAFETY: a process may always kill itself; SIGKILL does not return, and if it took its
            // time nothing else would be done meanwhile.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }

    /// Orders deaths: `POINT[:NTH[:WHO]]` with commas between. NTH (1) is the passing that is the
    /// last; WHO is `worker`, `master`, `any` (the default) or a process id. A process minds the first
    /// that is open for such as it, so deaths of workers come one after the other, and one of the
    /// master beside them. An empty text orders none. What was ordered before is forgotten.
    ///
    /// # Errors
    ///
    /// What is wrong with the text; then nothing is ordered.
    pub fn arm(text: &str) -> Result<(), String> {
        let mut orders = Vec::new();
        for order in text.split(',').filter(|order| !order.is_empty()) {
            let mut parts = order.split(':');
            let name = parts.next().unwrap_or_default();
            let Some(point) = POINTS.iter().position(|known| *known == name) else {
                return Err(format!("no point {name}; there are {}", POINTS.join(", ")));
            };
            let nth: u32 = match parts.next() {
                None | Some("") => 1,
                Some(n) => n.parse().map_err(|_| format!("{n} is no number of passings"))?,
            };
            let who = match parts.next() {
                None | Some("any") => MASTER + WORKER,
                Some("master") => MASTER,
                Some("worker") => WORKER,
                Some(pid) => pid.parse().map_err(|_| format!("{pid} is no process"))?,
            };
            orders.push((point as u32, who, nth.max(1)));
        }
        if orders.len() > ORDERS {
            return Err(format!("{ORDERS} deaths at a time are enough"));
        }
        let state = state();
        state.len.store(0, SeqCst);
        for (cell, (point, who, left)) in state.orders.iter().zip(&orders) {
            cell.point.store(*point, SeqCst);
            cell.who.store(*who, SeqCst);
            cell.left.store(*left, SeqCst);
        }
        state.len.store(orders.len() as u32, SeqCst);
        Ok(())
    }

    /// How many of the deaths that were ordered are still to come.
    pub fn waiting() -> u32 {
        let state = state();
        let len = state.len.load(SeqCst) as usize;
        let open = |order: &&Order| order.left.load(SeqCst) > 0;
        state.orders[..len.min(ORDERS)].iter().filter(open).count() as u32
    }

    /// How often masters and workers have passed each point, in the order of [`POINTS`].
    pub fn passed() -> Vec<(&'static str, u32, u32)> {
        let counts = state().passed.iter().map(|[m, w]| (m.load(SeqCst), w.load(SeqCst)));
        POINTS.iter().zip(counts).map(|(name, (m, w))| (*name, m, w)).collect()
    }
}
