//! Whether changes of other nodes are heard of at once: what the log says of the listener.

use super::*;
use crate::sync::Deaf;

/// Attempts in vain, while Redis can be used, that are worth a line: a connection may end for no reason.
const IN_VAIN: u32 = 2;

/// What is known of the listener.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// Why it hears nothing at present.
    deaf: Option<Deaf>,
    /// Its attempts in vain up to the first exchange that succeeded: those were made while Redis was
    /// away, perhaps. `None`: no exchange has since.
    before: Option<u32>,
    /// Its attempts in vain when the exchange that is under way was asked for.
    asked: u32,
    /// The log says that it hears nothing.
    said: bool,
}

impl Hearing {
    fn attempts(&self) -> u32 {
        self.deaf.as_ref().map_or(0, |deaf| deaf.attempts)
    }

    /// An exchange is asked for.
    pub(super) fn asked(&mut self) {
        self.asked = self.attempts();
    }

    /// An exchange has failed.
    pub(super) fn failed(&mut self) {
        self.before = None;
    }

    /// An exchange has succeeded. `Some`: Redis can be used, and can't be listened to; why, once.
    fn succeeded(&mut self) -> Option<&str> {
        let attempts = self.attempts();
        let before = *self.before.get_or_insert(attempts);
        if self.said || self.asked < before.saturating_add(IN_VAIN) {
            return None;
        }
        let deaf = self.deaf.as_ref()?;
        self.said = true;
        Some(&deaf.why)
    }
}

impl Node {
    /// What the listener says of itself: to be passed on before each [`Node::step`], and before what
    /// came of a job is.
    pub fn hears(&mut self, deaf: Option<Deaf>) {
        if deaf.is_none() {
            self.hearing.before = self.hearing.before.map(|_| 0);
            if replace(&mut self.hearing.said, false) {
                let redis = &self.settings.redis;
                let line = format!(
                    "Redis {redis} is listened to again: changes of other nodes come at once"
                );
                self.say(Level::Notice, line);
            }
        }
        self.hearing.deaf = deaf;
    }

    pub(super) fn listens(&mut self) {
        if let Some(why) = self.hearing.succeeded() {
            let redis = &self.settings.redis;
            let line = format!(
                "Redis {redis} can't be listened to: {why}; changes of other nodes come within \
                 redis_interval instead of at once"
            );
            self.say(Level::Warn, line);
        }
    }
}
