//! Private keys of a wrong type.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{Link, LinkError, Script};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("mend.lua")));

#[derive(Deserialize)]
struct Mended {
    #[serde(default)]
    wrong: Vec<String>,
}

/// Deletes private keys that have another type than they should have, and returns which.
///
/// # Errors
///
/// [`LinkError`]: it may have been done or not.
pub(super) fn mend(link: &mut Link, prefix: &str) -> Result<Vec<String>, LinkError> {
    let answer = link.eval(&SCRIPT, &format!("{prefix}:sync:epoch"), prefix.as_bytes())?;
    let mended: Mended = serde_json::from_str(&String::from_utf8_lossy(&answer))
        .map_err(|_| LinkError::Answer("something that makes no sense"))?;
    Ok(mended.wrong)
}
