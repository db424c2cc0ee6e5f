//! Settings from four places: a flag beats a variable, a variable beats the file, the file beats the default. Knows of
//! each where it came from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::keys::Key;
use crate::problem::{Exit, Problem};

/// Values in force, by path, and where each came from.
#[derive(Debug)]
pub(crate) struct Layers {
    keys: &'static [Key],
    values: BTreeMap<&'static str, (Value, String)>,
}

impl Layers {
    pub(crate) fn new(keys: &'static [Key], defaults: &impl Serialize) -> Result<Self, Problem> {
        let defaults = serde_json::to_value(defaults).map_err(|error| {
            Problem::new(Exit::Failed, "the default settings cannot be shown").because_of(&error)
        })?;
        let value = |key: &Key| defaults.pointer(&pointer(key.path)).cloned().unwrap_or(Value::Null);
        let values = keys.iter().map(|key| (key.path, (value(key), "default".to_owned()))).collect();
        Ok(Self { keys, values })
    }

    /// The file, where there is one; unknown keys are errors.
    pub(crate) fn file(mut self, path: Option<&Path>) -> Result<Self, Problem> {
        let Some(path) = path else { return Ok(self) };
        let what = || format!("the settings file {} cannot be used", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| {
            let exit =
                if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Usage };
            Problem::new(exit, what()).because_of(&error)
        })?;
        let table: Map<String, Value> = toml::from_str(&text).map_err(|error| {
            Problem::new(Exit::Usage, what()).because(error.to_string().trim_end().to_owned())
        })?;
        for (name, value) in self.flat("", table) {
            let key = self.keys.iter().find(|key| key.path == name).ok_or_else(|| {
                Problem::new(Exit::Usage, what())
                    .because(format!("unknown key `{name}`{}", self.nearest(&name)))
            })?;
            let value = key.kind.accept(value.clone()).map_err(|expected| {
                Problem::new(Exit::Usage, what())
                    .because(format!("`{name}`: {value} is not allowed: {expected}"))
            })?;
            self.values.insert(key.path, (value, format!("file {}", path.display())));
        }
        Ok(self)
    }

    /// `OUTLAST_*`.
    pub(crate) fn environment(mut self, get: impl Fn(&str) -> Option<String>) -> Result<Self, Problem> {
        for key in self.keys {
            let Some(text) = get(key.variable).filter(|text| !text.is_empty()) else { continue };
            let value = key.kind.read(&text).map_err(|expected| {
                Problem::new(Exit::Usage, format!("{} is set to {text:?}", key.variable)).because(expected)
            })?;
            self.values.insert(key.path, (value, format!("variable {}", key.variable)));
        }
        Ok(self)
    }

    /// A flag; `None` where it was not given.
    pub(crate) fn flag(mut self, path: &'static str, flag: &str, value: Option<Value>) -> Self {
        if let Some(value) = value {
            self.values.insert(path, (value, format!("flag --{flag}")));
        }
        self
    }

    /// What is in force, as the type that the daemon takes.
    pub(crate) fn resolve<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let mut root = Map::new();
        for (path, (value, _)) in &self.values {
            if !value.is_null() {
                insert(&mut root, path, value.clone());
            }
        }
        serde_json::from_value(Value::Object(root)).map_err(|error| self.unresolved(&error))
    }

    /// serde does not say which key it was: look for the one without which it works.
    fn unresolved(&self, error: &serde_json::Error) -> Problem {
        let what = "the settings cannot be used";
        let quoted = self.values.iter().find(|(_, (value, origin))| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            origin != "default" && !text.is_empty() && error.to_string().contains(&text)
        });
        let problem = Problem::new(Exit::Usage, what).because(error.to_string());
        match quoted {
            Some((path, (value, origin))) => problem.because(format!("`{path}` is {value}, from {origin}")),
            None => problem.next("--print-config shows where each setting comes from"),
        }
    }

    /// A settings file with what is in force, and where each value came from.
    pub(crate) fn print(&self) -> String {
        let width = self.values.iter().map(|(path, (value, _))| line(path, value).len()).max().unwrap_or(0);
        let sorted =
            self.keys.iter().filter_map(|key| self.values.get(key.path).map(|value| (key.path, value)));
        let lines =
            sorted.map(|(path, (value, origin))| format!("{:width$}  # {origin}\n", line(path, value)));
        lines.collect()
    }

    /// `resources.cpus` of nested tables; a table that is a value itself stays one.
    fn flat(&self, prefix: &str, table: Map<String, Value>) -> Vec<(String, Value)> {
        let mut flat = Vec::new();
        for (name, value) in table {
            let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            let inner = format!("{path}.");
            match value {
                Value::Object(table) if self.keys.iter().any(|key| key.path.starts_with(&inner)) => {
                    flat.extend(self.flat(&path, table));
                }
                value => flat.push((path, value)),
            }
        }
        flat
    }

    fn nearest(&self, name: &str) -> String {
        let scored = self.keys.iter().map(|key| (strsim::damerau_levenshtein(name, key.path), key.path));
        match scored.min().filter(|(distance, _)| *distance <= 3) {
            Some((_, near)) => format!("; did you mean `{near}`?"),
            None => {
                let known: Vec<_> = self.keys.iter().map(|key| key.path).collect();
                format!("; known keys are {}", known.join(", "))
            }
        }
    }
}

/// One line of TOML; what has no value is a comment.
fn line(path: &str, value: &Value) -> String {
    match value {
        Value::Null => format!("# {path} ="),
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key:?} = {value}")).collect();
            format!("{path} = {{ {} }}", pairs.join(", "))
        }
        value => format!("{path} = {value}"),
    }
}

fn pointer(path: &str) -> String {
    path.split('.').map(|part| format!("/{part}")).collect()
}

fn insert(table: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), value)),
        Some((head, rest)) => {
            let inner = table.entry(head).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use outlast_agent::AgentConfig;
    use serde_json::json;

    use super::super::agent::KEYS;
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn layers() -> Layers {
        Layers::new(KEYS, &AgentConfig::default()).expect("defaults are good")
    }

    #[test]
    fn a_flag_beats_a_variable_and_that_the_file() {
        let file =
            file("name = 'a'\nlisten = '127.0.0.1:1'\nadvertise = 'x:1'\n[resources]\nmemory = '1GiB'\n");
        let vars = |name: &str| match name {
            "OUTLAST_NAME" => Some("b".to_owned()),
            "OUTLAST_LISTEN" => Some("127.0.0.1:2".to_owned()),
            _ => None,
        };
        let layers = layers().file(Some(file.path())).expect("good").environment(vars).expect("good");
        let layers = layers.flag("name", "name", Some(json!("c")));
        let config: AgentConfig = layers.resolve().expect("good");
        assert_eq!(config.name.as_ref().map(ToString::to_string).as_deref(), Some("c"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:2");
        assert_eq!(config.advertise.as_deref(), Some("x:1"));
        assert_eq!(config.resources.memory.map(|memory| memory.0), Some(1 << 30));
        let printed = layers.print();
        for (setting, origin) in [
            ("name = \"c\"", "# flag --name"),
            ("listen = \"127.0.0.1:2\"", "# variable OUTLAST_LISTEN"),
            ("advertise = \"x:1\"", "# file "),
            ("insecure = false", "# default"),
        ] {
            let line =
                printed.lines().find(|line| line.starts_with(setting)).unwrap_or_else(|| panic!("{printed}"));
            assert!(line.contains(origin), "{line}");
        }
        let reread: toml::Table = toml::from_str(&printed).expect("what is printed is a settings file");
        assert!(reread.contains_key("listen"));
    }

    #[test]
    fn slips_of_the_pen_are_named() {
        for (text, expected) in [
            ("lisen = 'x'", "did you mean `listen`?"),
            ("[resources]\ncpu = 1", "did you mean `resources.cpus`?"),
            ("colour = 1", "known keys are"),
            ("insecure = 'very'", "it takes true or false"),
            ("listen = ", "cannot be used"),
        ] {
            let told = format!("{:?}", layers().file(Some(file(text).path())).expect_err(text));
            assert!(told.contains(expected), "{text}: {told}");
        }
        let wrong = layers().flag("listen", "listen", Some(json!("nowhere"))).resolve::<AgentConfig>();
        let told = format!("{:?}", wrong.expect_err("no address"));
        assert!(told.contains("settings cannot be used"), "{told}");
    }
}
