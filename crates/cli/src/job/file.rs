//! Job files: read, parsed and checked here first, so that a slip of the pen costs no round trip.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::problem::{Exit, Problem};

/// A job file that is known to be good.
#[derive(Debug)]
pub(crate) struct JobFile {
    /// What is sent.
    pub(crate) value: Value,
    /// The folder that the job brings along.
    pub(crate) workdir: Option<PathBuf>,
}

/// Reads a job file; `-` is standard input, as YAML.
pub(crate) fn read(path: &Path) -> Result<JobFile, Problem> {
    let text = text(path)?;
    let value = parse_text(path, &text)?;
    let base = path.parent().filter(|_| path.as_os_str() != "-").unwrap_or(Path::new(""));
    check(value, &path.display().to_string(), base)
}

/// Checks a value; a relative `workdir` starts at `base`.
pub(crate) fn check(value: Value, source: &str, base: &Path) -> Result<JobFile, Problem> {
    outlast_types::spec::parse(&value).map_err(|error| {
        Problem::new(Exit::Usage, format!("{source} is not a job"))
            .because(error.to_string())
            .next("mend it; `outlast job submit --help` shows an example")
    })?;
    let workdir = value.get("workdir").and_then(Value::as_str).map(|dir| base.join(dir));
    Ok(JobFile { value, workdir })
}

fn text(path: &Path) -> Result<String, Problem> {
    let unreadable = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Usage };
        Problem::new(exit, format!("the job file {} cannot be read", path.display())).because_of(&error)
    };
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn parse_text(path: &Path, text: &str) -> Result<Value, Problem> {
    let extension = path.extension().and_then(|ext| ext.to_str()).unwrap_or_default().to_lowercase();
    let parsed = match extension.as_str() {
        "json" => serde_json::from_str(text).map_err(|error| ("JSON", error.to_string())),
        "toml" => toml::from_str(text).map_err(|error| ("TOML", error.to_string())),
        "yaml" | "yml" | "" => yaml(text).map_err(|error| ("YAML", error.to_string())),
        other => {
            return Err(Problem::new(Exit::Usage, format!("{} has no known form", path.display()))
                .because(format!("its extension is .{other}"))
                .next("name it .yaml, .toml or .json"));
        }
    };
    parsed.map_err(|(form, error)| {
        Problem::new(Exit::Usage, format!("{} is not {form}", path.display()))
            .because(error.trim_end().to_owned())
    })
}

/// By way of YAML's own value, which refuses a key that is there twice.
fn yaml(text: &str) -> Result<Value, serde_norway::Error> {
    let value: serde_norway::Value = serde_norway::from_str(text)?;
    serde_norway::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str, text: &str) -> String {
        let path = Path::new(name);
        let checked = parse_text(path, text).and_then(|value| check(value, name, Path::new("")));
        format!("{:?}", checked.expect_err("must be refused"))
    }

    #[test]
    fn the_three_forms_say_the_same() {
        let texts = [
            ("a.yaml", "name: a\ncommand: [echo, hi]\nworkers: 2\nworkdir: src\n"),
            ("a.toml", "name = 'a'\ncommand = ['echo', 'hi']\nworkers = 2\nworkdir = 'src'\n"),
            ("a.json", r#"{"name": "a", "command": ["echo", "hi"], "workers": 2, "workdir": "src"}"#),
        ];
        let specs = texts.map(|(name, text)| {
            let value = parse_text(Path::new(name), text).expect(name);
            let file = check(value, name, Path::new("base")).expect(name);
            assert_eq!(file.workdir.as_deref(), Some(Path::new("base/src")));
            outlast_types::spec::parse(&file.value).expect("was checked")
        });
        assert!(specs.iter().all(|spec| *spec == specs[0]));
    }

    #[test]
    fn mistakes_are_named() {
        for (name, text, expected) in [
            ("a.yaml", "name: a\ncommand: [x]\nwrokers: 2", "did you mean `workers`?"),
            ("a.yaml", "name: a\nname: b\ncommand: [x]", "duplicate"),
            ("a.yaml", "name: [", "is not YAML"),
            ("a.toml", "name = ", "is not TOML"),
            ("a.json", "{", "is not JSON"),
            ("a.yaml", "- a", "must be a mapping"),
            ("a.ini", "", "its extension is .ini"),
        ] {
            let told = problem(name, text);
            assert!(told.contains(expected), "{name} {text:?}: {told}");
        }
    }
}
