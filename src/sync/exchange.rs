//! One exchange with Redis: what is sent to `exchange.lua`, and what comes back.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize, Serializer};

use super::given::{self, Fields};
use super::{Link, LinkError, Script};
use crate::registry::{
    Address, LiveRecord, MAX_CONNS_MAX, News, Outcome, Record, RecordState, Settings, SpaceName,
    WEIGHT_MAX, What,
};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("exchange.lua")));

/// The identity of an epoch, a run or a node: sixteen hexadecimal digits, nothing for 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity(pub u64);

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 0 {
            return serializer.serialize_str("");
        }
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl Identity {
    fn parse(text: &str) -> Option<Self> {
        let id = u64::from_str_radix(text, 16).ok().filter(|id| *id != 0 && text.len() == 16);
        id.map(Self)
    }
}

/// What a node says and asks. Fields that are not there are left out: Lua takes `null` for
/// something.
#[derive(Clone, Default, Serialize, Debug)]
pub struct Request {
    /// The keys' prefix, with the braces of a cluster.
    pub prefix: String,
    /// Who asks: name and incarnation. Without one nothing is said of counts and nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The epoch that the node follows.
    pub epoch: Identity,
    /// The epoch to begin with where Redis has none.
    pub new_epoch: Identity,
    /// The run that the node knows.
    pub run: Identity,
    /// The run to begin with where Redis has none, or has lost something.
    pub new_run: Identity,
    /// Version up to which records have been read.
    pub cursor: u64,
    /// Number up to which signs of life have been read.
    pub beat_cursor: u64,
    /// Number up to which counts have been read.
    pub total_cursor: u64,
    /// The connection is new.
    pub connected: bool,
    /// Everything is being read.
    pub snapshot: bool,
    /// By Redis' clock, in milliseconds: ages count from then. What a command waits for on its way
    /// would make old changes later than they are, and win over later ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// By Redis' clock, in milliseconds: what comes later is not obeyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Namespaces that are looked for in the public keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spaces: Vec<String>,
    /// What is new here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub news: Vec<Item>,
    /// Servers and the node's mean requests on them, in thousandths, one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// These counts are all there are.
    pub reset: bool,
    /// The node is about to go.
    pub leaving: bool,
    /// The node has looked at all public keys.
    pub scanned: bool,
    /// Milliseconds after which a silent node is taken for dead.
    pub node_ttl: u64,
    /// Milliseconds for which removals are remembered.
    pub tombstone_ttl: u64,
    /// Records in one answer; 0: nothing is read.
    pub most_records: u32,
    /// Signs of life, and counts, in one answer.
    pub most_beats: u32,
}

/// A half of what is said of a count.
#[derive(Clone, Serialize, Debug)]
#[serde(untagged)]
pub enum Count {
    /// Namespace and address.
    Server(String),
    /// Thousandths.
    Mean(u32),
}

/// One thing that is new. Ages are in milliseconds.
#[derive(Clone, Default, Serialize, Debug)]
pub struct Item {
    pub(super) kind: &'static str,
    #[serde(rename = "n")]
    pub(super) namespace: String,
    #[serde(rename = "a")]
    pub(super) address: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<ItemChange>,
    #[serde(rename = "hb", skip_serializing_if = "Option::is_none")]
    pub(super) heartbeat_age: Option<u64>,
    #[serde(rename = "ra", skip_serializing_if = "Option::is_none")]
    pub(super) removed_age: Option<u64>,
    /// It was told before.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) again: bool,
    /// What was read from a public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<String>,
}

/// A server with its changes.
#[derive(Clone, Default, Serialize, Debug)]
pub(super) struct ItemChange {
    #[serde(rename = "h")]
    pub(super) host: String,
    #[serde(rename = "p")]
    pub(super) port: u16,
    #[serde(rename = "add", skip_serializing_if = "Option::is_none")]
    pub(super) added: Option<u64>,
    #[serde(rename = "w")]
    pub(super) weight: u32,
    #[serde(rename = "wa", skip_serializing_if = "Option::is_none")]
    pub(super) weight_age: Option<u64>,
    #[serde(rename = "m")]
    pub(super) max_conns: u32,
    #[serde(rename = "ma", skip_serializing_if = "Option::is_none")]
    pub(super) max_conns_age: Option<u64>,
    #[serde(rename = "d")]
    pub(super) disabled: u8,
    #[serde(rename = "r")]
    pub(super) draining: u8,
    #[serde(rename = "sa", skip_serializing_if = "Option::is_none")]
    pub(super) switch_age: Option<u64>,
    /// Its settings; with these or with a registration alone.
    #[serde(rename = "g", skip_serializing_if = "Option::is_none")]
    pub(super) settings: Option<Fields>,
    #[serde(rename = "ga", skip_serializing_if = "Option::is_none")]
    pub(super) settings_age: Option<u64>,
    /// Of weight, limit, switch and settings, news or not; with a registration alone.
    #[serde(rename = "old", skip_serializing_if = "Option::is_none")]
    pub(super) ages: Option<[u64; 4]>,
    #[serde(rename = "da")]
    pub(super) disabled_age: u64,
    #[serde(rename = "created")]
    pub(super) created_age: u64,
    /// The sign of life only counts where Redis has none.
    pub(super) weak: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(b: &bool) -> bool {
    !*b
}

impl Item {
    /// What is to be said of a server's news.
    pub fn of(news: &News) -> Self {
        let item = Self {
            namespace: news.namespace.clone(),
            address: news.address.to_string(),
            ..Self::default()
        };
        match news.what {
            What::Remove { ago, again } => {
                Self { kind: "remove", removed_age: Some(ago), again, ..item }
            }
            What::Beat => Self { kind: "beat", heartbeat_age: Some(news.heartbeat_age), ..item },
            What::Forget => {
                Self { kind: "forget", heartbeat_age: Some(news.heartbeat_age), ..item }
            }
            What::Change => Self {
                kind: "change",
                heartbeat_age: Some(news.heartbeat_age),
                change: Some(ItemChange {
                    host: news.address.host(),
                    port: news.address.port(),
                    added: news.added,
                    weight: news.weight,
                    weight_age: news.weight_age,
                    max_conns: news.max_conns,
                    max_conns_age: news.max_conns_age,
                    disabled: news.disabled.into(),
                    draining: news.draining.into(),
                    switch_age: news.switch_age,
                    settings: news
                        .added
                        .or(news.settings_age)
                        .map(|_| given::write(&news.settings)),
                    settings_age: news.settings_age,
                    ages: news.added.map(|_| news.ages),
                    disabled_age: news.disabled_age,
                    created_age: news.created_age,
                    weak: news.heard_afar,
                }),
                ..item
            },
        }
    }
}

/// What came back.
#[derive(Debug)]
pub enum Answer {
    /// Nothing was done: everything was wiped on purpose.
    Wiped {
        /// To be followed.
        epoch: Identity,
        /// So many milliseconds ago.
        age: u64,
        /// By Redis' clock it is so late.
        clock: u64,
    },
    /// Nothing was done: these are data of another epoch, which does not say that it replaces ours.
    Foreign(Identity),
    /// Nothing was done: everything is to be read first.
    Run {
        /// To be followed.
        epoch: Identity,
        /// To be known.
        run: Identity,
        /// Redis has lost something.
        lost: bool,
        /// And removals have been forgotten that the node has not read.
        behind: bool,
        /// Removals have been forgotten there.
        purged: bool,
    },
    /// Nothing was done: removals have been forgotten that the node has not read.
    Behind,
    /// Nothing was done: it came too late. By Redis' clock it is so late.
    Late(u64),
    /// All of it was done.
    Done(Box<Done>),
}

/// What an exchange brought.
#[derive(Debug, Default)]
pub struct Done {
    /// Redis' clock, in milliseconds since the epoch.
    pub now: u64,
    /// What became of each of the news, with the version of the server's record, or 0.
    pub results: Vec<(Outcome, u64)>,
    /// Redis knows nothing of this node's counts: all are to be told.
    pub unknown: bool,
    /// Nodes that take part.
    pub nodes: u32,
    /// This node looks for what other programs write.
    pub lease: bool,
    /// All public keys have been looked at since this run began.
    pub scanned: bool,
    /// Servers that have changed.
    pub records: Vec<Record>,
    /// New cursors.
    pub cursors: (u64, u64, u64),
    /// There is more to be read.
    pub more: bool,
    /// Signs of life: namespace, address, age.
    pub beats: Vec<(String, String, u64)>,
    /// Requests on servers in thousandths: namespace, address, sum of all nodes, this node's.
    pub totals: Vec<(String, String, u64, u64)>,
    /// Public keys of a wrong type, and the type that they should be of.
    pub wrong: Vec<(String, String)>,
    /// Records that make no sense.
    pub nonsense: Vec<String>,
}

#[derive(Deserialize)]
struct Reply {
    now: u64,
    #[serde(default)]
    state: String,
    #[serde(default)]
    epoch: String,
    #[serde(default)]
    run: String,
    #[serde(default)]
    lost: bool,
    #[serde(default)]
    behind: bool,
    #[serde(default)]
    floor: u64,
    #[serde(default)]
    wiped_age: f64,
    #[serde(default)]
    results: Vec<u64>,
    #[serde(default)]
    unknown: bool,
    #[serde(default)]
    nodes: u32,
    #[serde(default)]
    lease: bool,
    #[serde(default)]
    scanned: bool,
    #[serde(default)]
    cursor: u64,
    #[serde(default)]
    beat_cursor: u64,
    #[serde(default)]
    total_cursor: u64,
    #[serde(default)]
    more: bool,
    #[serde(default)]
    more_beats: bool,
    #[serde(default)]
    more_totals: bool,
    #[serde(default)]
    records: Vec<Cell>,
    #[serde(default)]
    beats: Vec<Cell>,
    #[serde(default)]
    totals: Vec<Cell>,
    #[serde(default)]
    wrong: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Cell {
    Text(String),
    Number(f64),
}

/// A record as `exchange.lua` writes it; see there.
#[derive(Deserialize)]
struct Stored {
    v: f64,
    a: f64,
    x: Option<f64>,
    #[serde(default)]
    c: f64,
    #[serde(default)]
    w: f64,
    #[serde(default)]
    wt: f64,
    #[serde(default)]
    m: f64,
    #[serde(default)]
    mt: f64,
    #[serde(default)]
    d: f64,
    #[serde(default)]
    r: f64,
    #[serde(default)]
    st: f64,
    #[serde(default)]
    dt: f64,
    #[serde(default)]
    g: Fields,
    gt: Option<f64>,
}

/// Runs an exchange.
///
/// # Errors
///
/// [`LinkError`]: it may have been done or not.
pub(super) fn exchange(link: &mut Link, request: &Request) -> Result<Answer, LinkError> {
    // Serialising these types into memory has no way to fail.
    let text = serde_json::to_vec(request).unwrap_or_default();
    let key = format!("{}:sync:epoch", request.prefix);
    let answer = link.eval(&SCRIPT, &key, &text)?;
    read(&answer).ok_or(LinkError::Answer("something that makes no sense"))
}

fn read(answer: &[u8]) -> Option<Answer> {
    // What others have written there need not be text.
    let reply: Reply = match serde_json::from_slice(answer) {
        Ok(reply) => reply,
        Err(_) => serde_json::from_str(&String::from_utf8_lossy(answer)).ok()?,
    };
    let epoch = Identity::parse(&reply.epoch);
    Some(match reply.state.as_str() {
        "" => Answer::Done(Box::new(done(reply))),
        "wiped" => {
            let (age, clock) = (milliseconds(reply.wiped_age), reply.now);
            Answer::Wiped { epoch: epoch?, age, clock }
        }
        "foreign" => Answer::Foreign(epoch?),
        "run" => {
            let (run, lost, behind) = (Identity::parse(&reply.run)?, reply.lost, reply.behind);
            Answer::Run { epoch: epoch?, run, lost, behind, purged: reply.floor > 0 }
        }
        "behind" => Answer::Behind,
        "late" => Answer::Late(reply.now),
        _ => return None,
    })
}

fn done(reply: Reply) -> Done {
    let mut done = Done {
        now: reply.now,
        unknown: reply.unknown,
        nodes: reply.nodes,
        lease: reply.lease,
        scanned: reply.scanned,
        cursors: (reply.cursor, reply.beat_cursor, reply.total_cursor),
        more: reply.more || reply.more_beats || reply.more_totals,
        ..Done::default()
    };
    done.results.extend(reply.results.chunks_exact(2).map(|pair| {
        let outcome = match pair[0] {
            0 => Outcome::Unknown,
            2 => return (Outcome::Removed(pair[1]), 0),
            3 => Outcome::Alive,
            _ => Outcome::Done,
        };
        (outcome, pair[1])
    }));
    for cells in reply.records.chunks_exact(3) {
        let [Cell::Text(member), Cell::Text(text), Cell::Number(heard)] = cells else { continue };
        match record(member, text, *heard, reply.now) {
            Some(record) => done.records.push(record),
            None => done.nonsense.push(member.clone()),
        }
    }
    for cells in reply.beats.chunks_exact(2) {
        if let [Cell::Text(member), Cell::Number(age)] = cells
            && let Some((namespace, address)) = member.split_once(' ')
        {
            done.beats.push((namespace.to_owned(), address.to_owned(), milliseconds(*age)));
        }
    }
    for cells in reply.totals.chunks_exact(3) {
        if let [Cell::Text(member), Cell::Number(total), Cell::Number(mine)] = cells
            && let Some((namespace, address)) = member.split_once(' ')
        {
            let (total, mine) = (milliseconds(*total), milliseconds(*mine));
            done.totals.push((namespace.to_owned(), address.to_owned(), total, mine));
        }
    }
    done.wrong.extend(reply.wrong.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
    done
}

/// Milliseconds or thousandths: Lua's numbers are floating-point ones.
fn milliseconds(n: f64) -> u64 {
    if n > 0.0 { n as u64 } else { 0 }
}

fn record(member: &str, text: &str, heard: f64, now: u64) -> Option<Record> {
    let (namespace, address) = member.split_once(' ')?;
    SpaceName::new(namespace.as_bytes())?;
    let address = Address::parse(address).filter(|parsed| parsed.to_string() == address)?;
    let stored: Stored = serde_json::from_str(text).ok()?;
    // A time of a clock that was ahead: how long ago it was is not known. As in `exchange.lua`.
    let age = |at: f64| match milliseconds(at) {
        at if at > now + 1000 => 60_000,
        at => now.saturating_sub(at),
    };
    let whole = |n: f64, most: u32| {
        (n >= 0.0 && n <= f64::from(most) && n.fract() == 0.0).then_some(n as u32)
    };
    let state = match stored.x {
        Some(at) => RecordState::Removed(age(at)),
        None => RecordState::Live(LiveRecord {
            added: age(stored.a),
            weight: whole(stored.w, WEIGHT_MAX)?,
            weight_age: age(stored.wt),
            max_conns: whole(stored.m, MAX_CONNS_MAX)?,
            max_conns_age: age(stored.mt),
            disabled: stored.d != 0.0,
            draining: stored.r != 0.0,
            switch_age: age(stored.st),
            disabled_age: age(stored.dt),
            created_age: age(stored.c),
            settings: match stored.gt {
                Some(_) => given::read(&stored.g).ok()?,
                None => Settings::DEFAULT,
            },
            settings_age: stored.gt.map(age),
            heartbeat_age: if heard < 0.0 { 0 } else { milliseconds(heard) },
        }),
    };
    let version = milliseconds(stored.v);
    Some(Record { namespace: namespace.to_owned(), address, version, state })
}
