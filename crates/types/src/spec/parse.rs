//! From a job file's value to a checked [`JobSpec`]: unknown keys, wrong units and impossible numbers are named.

mod checkpoint;

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::{
    HangAfter, JobKind, JobSpec, Placement, ReadyCheck, RecoveryPolicy, SPEC_SIZE_MAX, WORKERS_MAX, Workers,
};
use crate::{ByteSize, NodeId, Resources, Span};

/// What is wrong with a job file; the key is a path such as `checkpoint.every`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("the job file must be a mapping of keys to values")]
    NotAMapping,
    #[error("unknown key `{key}`{}", suggestion(.nearest, .known))]
    UnknownKey { key: String, nearest: Option<String>, known: String },
    #[error("`{key}` is missing: {expected}")]
    Missing { key: String, expected: String },
    #[error("`{key}`: {found} is not allowed: {expected}")]
    Invalid { key: String, found: String, expected: String },
    #[error(
        "the job specification has {size} bytes; at most {SPEC_SIZE_MAX} are allowed: put big data into `workdir`"
    )]
    TooLarge { size: usize },
}

fn suggestion(nearest: &Option<String>, known: &str) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`?"),
        None => format!("; known keys are {known}"),
    }
}

/// One mapping of the file, with the path that leads to it. Every key has to be asked for, else `finish` refuses it.
struct Section<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: &'static [&'static str],
}

impl<'a> Section<'a> {
    fn open(path: &str, value: &'a Value, known: &'static [&'static str]) -> Result<Self, SpecError> {
        let section = match value {
            Value::Object(map) => Self { path: path.to_owned(), map, known },
            other if path.is_empty() => {
                let _ = other;
                return Err(SpecError::NotAMapping);
            }
            other => {
                return Err(invalid(path, other, &format!("it takes a mapping with {}", known.join(", "))));
            }
        };
        match section.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(section),
            Some(key) => Err(SpecError::UnknownKey {
                nearest: section.nearest(key),
                key: section.key(key),
                known: known.join(", "),
            }),
        }
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn nearest(&self, key: &str) -> Option<String> {
        let scored = self.known.iter().map(|known| (strsim::damerau_levenshtein(key, known), *known));
        scored
            .min()
            .filter(|(distance, known)| *distance <= known.len().div_ceil(2).min(3))
            .map(|(_, k)| self.key(k))
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn section(&self, name: &str, known: &'static [&'static str]) -> Result<Option<Section<'a>>, SpecError> {
        self.get(name).map(|value| Section::open(&self.key(name), value, known)).transpose()
    }

    fn text(&self, name: &str) -> Result<Option<String>, SpecError> {
        self.get(name)
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(invalid(&self.key(name), other, "it takes text")),
            })
            .transpose()
    }

    fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, SpecError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(invalid(&self.key(name), other, "it takes a value with a unit")),
        };
        let parsed = text.parse().map_err(|error: T::Err| SpecError::Invalid {
            key: self.key(name),
            found: value.to_string(),
            expected: error.to_string(),
        })?;
        Ok(Some(parsed))
    }

    fn whole(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, SpecError> {
        let expected = || format!("it takes a whole number from {min} to {max}");
        self.get(name)
            .map(|value| {
                let number = value.as_u64().filter(|n| (min..=max).contains(n));
                number.ok_or_else(|| invalid(&self.key(name), value, &expected()))
            })
            .transpose()
    }

    fn flag(&self, name: &str) -> Result<bool, SpecError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(&self.key(name), other, "it takes true or false")),
        }
    }

    /// A mapping from text to text; numbers and truth values are taken as their text.
    fn texts(&self, name: &str) -> Result<BTreeMap<String, String>, SpecError> {
        let Some(value) = self.get(name) else { return Ok(BTreeMap::new()) };
        let Value::Object(map) = value else {
            return Err(invalid(&self.key(name), value, "it takes a mapping from text to text"));
        };
        let text = |key: &str, value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            other => Err(invalid(&self.key(&format!("{name}.{key}")), other, "it takes text")),
        };
        map.iter().map(|(key, value)| Ok((key.clone(), text(key, value)?))).collect()
    }
}

fn invalid(key: &str, found: &Value, expected: &str) -> SpecError {
    SpecError::Invalid { key: key.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}

const TOP: &[&str] = &[
    "name",
    "kind",
    "command",
    "script",
    "workdir",
    "workers",
    "resources",
    "env",
    "checkpoint",
    "recovery",
    "placement",
    "ready",
    "exclusive",
    "retention",
];

/// Turns the value of a job file into a checked specification. `workdir` is allowed and ignored here: it is the
/// client that turns it into a bundle.
///
/// # Errors
/// The first thing that is wrong, with its key.
pub fn parse(value: &Value) -> Result<JobSpec, SpecError> {
    let top = Section::open("", value, TOP)?;
    top.text("workdir")?;
    let kind = kind(&top)?;
    let spec = JobSpec {
        name: name(&top)?,
        kind,
        command: command(&top)?,
        workers: workers(&top, kind)?,
        resources: resources(&top)?,
        env: env(&top)?,
        checkpoint: checkpoint::checkpoint(&top)?,
        recovery: recovery(&top)?,
        placement: placement(&top)?,
        ready: ready(&top, kind)?,
        exclusive: top.flag("exclusive")?,
        retention: top.parsed("retention")?.unwrap_or(Span::from_secs(7 * 86_400)),
    };
    let texts = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let size = spec.command.iter().map(String::len).sum::<usize>()
        + texts(&spec.env)
        + texts(&spec.placement.require)
        + texts(&spec.placement.prefer);
    if size > SPEC_SIZE_MAX { Err(SpecError::TooLarge { size }) } else { Ok(spec) }
}

fn name(top: &Section<'_>) -> Result<String, SpecError> {
    let missing = || SpecError::Missing {
        key: "name".into(),
        expected: "give the job a name, for example digits".into(),
    };
    let name = top.text("name")?.ok_or_else(missing)?;
    match NodeId::new(name.clone()) {
        // A name that looks like an id could never be addressed.
        Ok(_) if name.parse::<crate::JobId>().is_err() => Ok(name),
        Ok(_) => Err(invalid("name", &Value::String(name), "it looks like a job id; choose another name")),
        Err(error) => Err(invalid("name", &Value::String(name), error.expected)),
    }
}

fn kind(top: &Section<'_>) -> Result<JobKind, SpecError> {
    match top.text("kind")?.as_deref() {
        None | Some("training") => Ok(JobKind::Training),
        Some("service") => Ok(JobKind::Service),
        Some("batch") => Ok(JobKind::Batch),
        Some(other) => Err(invalid("kind", &other.into(), "use training, service or batch")),
    }
}

fn command(top: &Section<'_>) -> Result<Vec<String>, SpecError> {
    let expected = "it takes a list of texts, for example [python3, train.py]";
    let command = match (top.get("command"), top.text("script")?) {
        (Some(value), Some(_)) => {
            return Err(invalid("command", value, "give `command` or `script`, not both"));
        }
        (None, Some(script)) => vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
        (Some(Value::Array(items)), None) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                other => Err(invalid("command", other, expected)),
            })
            .collect::<Result<_, _>>()?,
        (Some(other), None) => {
            return Err(invalid("command", other, &format!("{expected}; for a shell line use `script`")));
        }
        (None, None) => {
            let expected = "say what to run: `command: [python3, train.py]` or `script: …`".to_owned();
            return Err(SpecError::Missing { key: "command".into(), expected });
        }
    };
    if command.first().is_none_or(String::is_empty) || command.iter().any(|part| part.contains('\0')) {
        return Err(invalid("command", &Value::Null, expected));
    }
    Ok(command)
}

fn workers(top: &Section<'_>, kind: JobKind) -> Result<Workers, SpecError> {
    let max = u64::from(WORKERS_MAX);
    let bounded = |n: u64| u32::try_from(n).unwrap_or(WORKERS_MAX);
    match top.get("workers") {
        Some(Value::Object(_)) => {
            let range = top.section("workers", &["min", "max"])?.expect("it is an object");
            let low = range.whole("min", 1, max)?.unwrap_or(1);
            let high = range.whole("max", low, max)?.unwrap_or(low);
            if kind != JobKind::Training && low != high {
                let found = format!("{{min: {low}, max: {high}}}");
                return Err(invalid(
                    "workers",
                    &found.into(),
                    "only training jobs can be elastic; give one number",
                ));
            }
            Ok(Workers { min: bounded(low), max: bounded(high) })
        }
        _ => {
            let n = bounded(top.whole("workers", 1, max)?.unwrap_or(1));
            Ok(Workers { min: n, max: n })
        }
    }
}

fn resources(top: &Section<'_>) -> Result<Resources, SpecError> {
    let Some(section) = top.section("resources", &["cpus", "memory", "gpus", "custom"])? else {
        return Ok(Resources { cpu_millis: 1_000, ..Resources::default() });
    };
    let cpu_millis = match section.get("cpus") {
        None => 1_000,
        Some(value) => match value.as_f64().filter(|cpus| (0.0..=65_536.0).contains(cpus)) {
            Some(cpus) => (cpus * 1_000.0).round() as u64,
            None => {
                return Err(invalid("resources.cpus", value, "it takes a number of cores, for example 0.5"));
            }
        },
    };
    let mut custom = BTreeMap::new();
    if let Some(value) = section.get("custom") {
        let expected = "it takes a mapping from names to whole numbers";
        let Value::Object(map) = value else { return Err(invalid("resources.custom", value, expected)) };
        for (name, count) in map {
            let count = count
                .as_u64()
                .ok_or_else(|| invalid(&format!("resources.custom.{name}"), count, expected))?;
            custom.insert(name.clone(), count);
        }
    }
    let gpus = section.whole("gpus", 0, 1_024)?.unwrap_or(0) as u32;
    Ok(Resources {
        cpu_millis,
        memory: section.parsed::<ByteSize>("memory")?.unwrap_or_default(),
        gpus,
        custom,
    })
}

fn env(top: &Section<'_>) -> Result<BTreeMap<String, String>, SpecError> {
    let env = top.texts("env")?;
    for (key, value) in &env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(
                "env",
                &key.as_str().into(),
                "a name must not be empty or hold '=' or a zero byte",
            ));
        }
        if key.starts_with("OUTLAST_") {
            return Err(invalid(
                "env",
                &key.as_str().into(),
                "names that start with OUTLAST_ are set by the supervisor",
            ));
        }
    }
    Ok(env)
}

fn recovery(top: &Section<'_>) -> Result<RecoveryPolicy, SpecError> {
    let mut policy = RecoveryPolicy {
        max_user_failures: 3,
        hang_after: HangAfter::Auto,
        stop_grace: Span::from_secs(10),
        restore_wait: Span::from_secs(60),
    };
    let known = &["max_user_failures", "hang_after", "stop_grace", "restore_wait"];
    let Some(section) = top.section("recovery", known)? else { return Ok(policy) };
    if let Some(n) = section.whole("max_user_failures", 0, 1_000_000)? {
        policy.max_user_failures = n as u32;
    }
    policy.hang_after = match section.get("hang_after") {
        None => HangAfter::Auto,
        Some(Value::String(text)) if text == "auto" => HangAfter::Auto,
        Some(Value::String(text)) if text == "never" => HangAfter::Never,
        Some(_) => HangAfter::After(section.parsed("hang_after")?.expect("it is there")),
    };
    policy.stop_grace = section.parsed("stop_grace")?.unwrap_or(policy.stop_grace);
    policy.restore_wait = section.parsed("restore_wait")?.unwrap_or(policy.restore_wait);
    Ok(policy)
}

fn placement(top: &Section<'_>) -> Result<Placement, SpecError> {
    let Some(section) = top.section("placement", &["spread", "require", "prefer"])? else {
        return Ok(Placement::default());
    };
    Ok(Placement {
        spread: section.text("spread")?,
        require: section.texts("require")?,
        prefer: section.texts("prefer")?,
    })
}

fn ready(top: &Section<'_>, kind: JobKind) -> Result<Option<ReadyCheck>, SpecError> {
    let Some(value) = top.get("ready") else { return Ok(None) };
    if kind != JobKind::Service {
        return Err(invalid("ready", value, "only a service has a ready check"));
    }
    if value == "worker" {
        return Ok(Some(ReadyCheck::Worker));
    }
    let section = Section::open("ready", value, &["tcp", "http", "path"])?;
    let port = |name: &str| section.whole(name, 1, 65_535).map(|port| port.map(|port| port as u16));
    match (port("tcp")?, port("http")?) {
        (Some(port), None) => Ok(Some(ReadyCheck::Tcp { port })),
        (None, Some(port)) => {
            Ok(Some(ReadyCheck::Http { port, path: section.text("path")?.unwrap_or_else(|| "/".to_owned()) }))
        }
        _ => Err(invalid("ready", value, "write `worker`, `{tcp: PORT}` or `{http: PORT, path: /health}`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Every;

    fn error(value: Value) -> String {
        parse(&value).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_example_of_the_design_parses() {
        let spec = parse(&json!({
            "name": "digits", "kind": "training", "command": ["python3", "train.py"], "workdir": ".", "workers": 2,
            "resources": {"cpus": 1, "memory": "512MiB", "gpus": 0}, "env": {"EPOCHS": "20"},
            "checkpoint": {"every": "10s", "keep": 3, "durability": "replicated"},
            "recovery": {"max_user_failures": 3, "hang_after": "auto"},
            "placement": {"spread": "zone", "require": {"disk": "nvme"}}, "exclusive": false,
        }))
        .expect("valid");
        assert_eq!(spec.shape(), (1, 2));
        assert_eq!(spec.checkpoint.every, Every::Time(Span::from_secs(10)));
        assert_eq!(spec.resources.memory, ByteSize(512 << 20));
        let bytes = serde_json::to_string(&spec).expect("serialises");
        assert_eq!(serde_json::from_str::<JobSpec>(&bytes).expect("reads back"), spec);
    }

    #[test]
    fn every_mistake_is_named_with_its_key_and_a_way_out() {
        let base = |key: &str, value: Value| {
            let mut map = json!({"name": "a", "command": ["true"]});
            map[key] = value;
            map
        };
        let cases = [
            (base("wrokers", 2.into()), "unknown key `wrokers`; did you mean `workers`?"),
            (
                base("checkpoint", json!({"evry": "10s"})),
                "unknown key `checkpoint.evry`; did you mean `checkpoint.every`?",
            ),
            (base("zzzzzzzzzz", 1.into()), "unknown key `zzzzzzzzzz`; known keys are name, kind"),
            (
                base("resources", json!({"memory": "12 parsecs"})),
                "`resources.memory`: \"12 parsecs\" is not allowed",
            ),
            (base("resources", json!({"memory": -5})), "`resources.memory`: -5 is not allowed"),
            (base("resources", json!({"cpus": -1})), "`resources.cpus`: -1 is not allowed"),
            (base("workers", 0.into()), "it takes a whole number from 1 to 4096"),
            (base("workers", json!({"min": 4, "max": 2})), "`workers.max`"),
            (base("checkpoint", json!({"every": "10 parsecs"})), "write a time such as 10s"),
            (base("checkpoint", json!({"every": "0 steps"})), "`checkpoint.every`"),
            (base("checkpoint", json!({"durability": "eternal"})), "use local, replicated or stored"),
            (base("checkpoint", json!({"on_busy": "queue"})), "use skip or wait"),
            (base("command", "true".into()), "for a shell line use `script`"),
            (base("command", json!([])), "`command`"),
            (base("script", "true".into()), "not both"),
            (base("kind", "cron".into()), "use training, service or batch"),
            (base("name", "j12".into()), "it looks like a job id"),
            (base("name", "No Good".into()), "`name`"),
            (base("env", json!({"OUTLAST_JOB": "x"})), "set by the supervisor"),
            (base("ready", json!({"tcp": 80})), "only a service"),
            (base("env", json!({"BIG": "x".repeat(SPEC_SIZE_MAX)})), "at most"),
            (json!({"command": ["true"]}), "`name` is missing"),
            (json!({"name": "a"}), "`command` is missing"),
            (json!([1]), "must be a mapping"),
        ];
        for (value, expected) in cases {
            let message = error(value);
            assert!(message.contains(expected), "{message:?} should contain {expected:?}");
        }
    }
}
