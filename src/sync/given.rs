//! A server's settings as Redis has them: in the nodes' records and in the public keys.
//!
//! They have the names that `add` has for them, times are seconds, and what is as by default is left
//! out.

use serde_json::{Map, Value};

use crate::registry::{
    FAIL_TIMEOUT_MAX, HealthPath, MAX_FAILS_MAX, SLOW_START_MAX, Settings, TIMEOUT_MAX,
};
use crate::shm::timeout;

const HEALTH_PATH: &str = "health_path";

/// Fields of a JSON object.
pub(super) type Fields = Map<String, Value>;

/// A field that is a number.
struct Number {
    name: &'static str,
    /// As [`Settings`] has it.
    most: u32,
    /// It is seconds here and milliseconds there.
    is_time: bool,
    of: fn(&mut Settings) -> &mut u32,
}

const fn time(name: &'static str, most: u32, of: fn(&mut Settings) -> &mut u32) -> Number {
    Number { name, most, is_time: true, of }
}

const NUMBERS: [Number; 6] = [
    Number { name: "max_fails", most: MAX_FAILS_MAX, is_time: false, of: |s| &mut s.max_fails },
    time("fail_timeout", FAIL_TIMEOUT_MAX, |s| &mut s.fail_timeout_ms),
    time("slow_start", SLOW_START_MAX, |s| &mut s.slow_start_ms),
    time("connect_timeout", TIMEOUT_MAX, |s| &mut s.timeouts_ms[timeout::CONNECT]),
    time("send_timeout", TIMEOUT_MAX, |s| &mut s.timeouts_ms[timeout::SEND]),
    time("read_timeout", TIMEOUT_MAX, |s| &mut s.timeouts_ms[timeout::READ]),
];

/// The fields of settings.
pub(super) fn write(settings: &Settings) -> Fields {
    let (mut settings, mut default) = (*settings, Settings::DEFAULT);
    let mut fields = Fields::new();
    for number in &NUMBERS {
        let n = *(number.of)(&mut settings);
        if n != *(number.of)(&mut default) {
            let value = match number.is_time {
                true if n % 1000 != 0 => Value::from(f64::from(n) / 1000.0),
                true => Value::from(n / 1000),
                false => Value::from(n),
            };
            fields.insert(number.name.to_owned(), value);
        }
    }
    if settings.health_path != HealthPath::NONE {
        fields.insert(HEALTH_PATH.to_owned(), settings.health_path.as_str().into());
    }
    fields
}

/// Settings of which some stand among other fields.
///
/// # Errors
///
/// What a field must be that is something else.
pub(super) fn read(fields: &Fields) -> Result<Settings, String> {
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let mut settings = Settings::DEFAULT;
    for Number { name, most, is_time, of } in &NUMBERS {
        let Some(value) = field(name) else { continue };
        let n = value.as_f64().map(|n| if *is_time { (n * 1000.0).round() } else { n });
        match n.filter(|n| n.fract() == 0.0 && (0.0..=f64::from(*most)).contains(n)) {
            Some(n) => *of(&mut settings) = n as u32,
            None if *is_time => {
                let most = most / 1000;
                return Err(format!("\"{name}\" must be a number of seconds from 0 to {most}"));
            }
            None => return Err(format!("\"{name}\" must be a whole number from 0 to {most}")),
        }
    }
    if let Some(value) = field(HEALTH_PATH) {
        settings.health_path = value
            .as_str()
            .and_then(HealthPath::new)
            .ok_or_else(|| format!("\"{HEALTH_PATH}\" must be {}, or empty", HealthPath::SYNTAX))?;
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Fields {
        match value {
            Value::Object(fields) => fields,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn settings_come_back_as_they_were_and_defaults_take_no_room() {
        assert!(write(&Settings::DEFAULT).is_empty());
        let all = Settings {
            max_fails: 0,
            fail_timeout_ms: 0,
            slow_start_ms: 3_600_000,
            timeouts_ms: [1, 86_400_000, 1001],
            health_path: HealthPath::new("/a\"b\\").unwrap(),
        };
        let expected = serde_json::json!({
            "max_fails": 0, "fail_timeout": 0, "slow_start": 3600, "connect_timeout": 0.001,
            "send_timeout": 86400, "read_timeout": 1.001, "health_path": "/a\"b\\",
        });
        assert_eq!(Value::Object(write(&all)), expected);
        // What Lua makes of numbers.
        for ms in (0..=1_000_000).chain(86_399_000..=86_400_000) {
            let settings = Settings { timeouts_ms: [ms, 0, 0], ..Settings::DEFAULT };
            assert_eq!(read(&write(&settings)), Ok(settings));
        }
        assert_eq!(read(&write(&all)), Ok(all));
        let null = object(serde_json::json!({ "read_timeout": null, "weight": "x" }));
        assert_eq!(read(&null), Ok(Settings::DEFAULT));
    }

    #[test]
    fn what_a_field_must_be_is_said() {
        for (field, bad) in [
            ("max_fails", vec![1.5.into(), (-1).into(), "1".into(), 2_147_483_648_u64.into()]),
            ("fail_timeout", vec!["10s".into(), 86_401.into(), true.into()]),
            ("read_timeout", vec![(-0.1).into(), 86_400.001.into(), 1e300.into()]),
            ("slow_start", vec![3601.into()]),
            ("health_path", vec![1.into(), "live".into(), "/a b".into()]),
        ] {
            for value in bad {
                let mut fields = Fields::new();
                fields.insert(field.to_owned(), value);
                let why = read(&fields).unwrap_err();
                assert!(why.starts_with(&format!("\"{field}\" must be ")), "{why}");
            }
        }
    }
}
