//! What the thread does: it carries questions to Redis and answers back.

use std::time::Duration;

use super::exchange::{Answer, Request, exchange};
use super::mend::mend;
use super::scan::Scanner;
use super::{Endpoint, Link, LinkError, Stop};

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Job {
    /// To run an exchange.
    Exchange(Box<Request>),
    /// To look at a slice of what other programs may have written. What is found is told by a request
    /// like this one; `spaces` are namespaces of the configuration.
    Scan {
        /// Prefix, epoch and run.
        template: Box<Request>,
        /// Looked at even when Redis has no server of them.
        spaces: Vec<String>,
    },
}

/// What came of a job.
#[derive(Debug)]
pub struct Report {
    /// What came back, or why nothing did.
    pub outcome: Result<Outcome, String>,
    /// Lines for the log.
    pub warnings: Vec<String>,
}

/// What came back.
#[derive(Debug)]
pub enum Outcome {
    /// Of an exchange.
    Exchanged(Answer),
    /// Of a slice; true: the walk is through.
    Scanned(bool),
}

/// Does jobs, one after the other, with a connection that it makes when it needs one.
#[derive(Debug)]
pub struct Courier {
    endpoint: Endpoint,
    timeout: Duration,
    stop: Stop,
    link: Option<Link>,
    /// The link has answered no exchange yet.
    new: bool,
    scanner: Scanner,
}

impl Courier {
    /// One that is not connected yet. `stop` ends what it waits for.
    pub fn new(endpoint: Endpoint, timeout: Duration, stop: Stop) -> Self {
        Self { endpoint, timeout, stop, link: None, new: true, scanner: Scanner::default() }
    }

    /// Does a job.
    pub fn work(&mut self, mut job: Job) -> Report {
        let mut warnings = Vec::new();
        let outcome = self.try_work(&mut job, &mut warnings).map_err(|e| e.to_string());
        Report { outcome, warnings }
    }

    fn try_work(
        &mut self,
        job: &mut Job,
        warnings: &mut Vec<String>,
    ) -> Result<Outcome, LinkError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                self.new = true;
                Link::open_until(&self.endpoint, self.timeout, &self.stop)?
            }
        };
        if let Job::Exchange(request) = job {
            request.connected = self.new;
        }
        let done = self.with(&mut link, job, warnings);
        if let Err(LinkError::WrongType(_)) = &done {
            // The job fails, and the next one finds them gone.
            let prefix = match job {
                Job::Exchange(request) => &request.prefix,
                Job::Scan { template, .. } => &template.prefix,
            };
            for key in mend(&mut link, prefix).unwrap_or_default() {
                warnings.push(format!("key \"{key}\" in Redis had a wrong type and is made anew"));
            }
        }
        if !done.as_ref().is_err_and(LinkError::is_lost) {
            self.link = Some(link);
        }
        done
    }

    fn with(
        &mut self,
        link: &mut Link,
        job: &Job,
        warnings: &mut Vec<String>,
    ) -> Result<Outcome, LinkError> {
        match job {
            Job::Exchange(request) => {
                let answer = exchange(link, request)?;
                self.new = false;
                self.look_at(&answer, warnings);
                Ok(Outcome::Exchanged(answer))
            }
            Job::Scan { template, spaces } => {
                let slice = self.scanner.slice(link, &template.prefix, spaces)?;
                warnings.extend(slice.warnings);
                // Many at a time would hold up everybody else's commands.
                for items in slice.items.chunks(128) {
                    let request = Request { news: items.to_vec(), ..(**template).clone() };
                    let answer = exchange(link, &request)?;
                    self.look_at(&answer, warnings);
                }
                Ok(Outcome::Scanned(slice.done))
            }
        }
    }

    fn look_at(&mut self, answer: &Answer, warnings: &mut Vec<String>) {
        let Answer::Done(done) = answer else { return };
        for (key, kind) in &done.wrong {
            self.scanner.complain_of_key(key, kind, warnings);
        }
        for member in &done.nonsense {
            self.scanner.complain_of_record(member, warnings);
        }
    }
}
