//! Where the bucket is, and how to get in: two values that are safe to print.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use object_store::path::Path;

/// Which kind of store a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Gcs,
    Azure,
    File,
    Memory,
}

const SCHEMES: [(&str, Scheme); 5] = [
    ("s3", Scheme::S3),
    ("gs", Scheme::Gcs),
    ("az", Scheme::Azure),
    ("file", Scheme::File),
    ("memory", Scheme::Memory),
];

/// Text that is not the URL of a store. The text itself is not repeated: it may hold a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not the URL of an object store: {reason}")]
pub struct StoreUrlError {
    reason: String,
}

/// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`, or `memory:///` for tests. Holds
/// no credentials: a URL with some is refused, so this value may go to logs and records.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    pub(super) scheme: Scheme,
    /// Bucket or container; empty for `file` and `memory`.
    pub(super) authority: String,
    /// Without a slash at its ends.
    path: String,
}

impl StoreUrl {
    /// Where the keys begin inside the bucket. A folder is its own bucket.
    pub(super) fn prefix(&self) -> Path {
        match self.scheme {
            Scheme::File => Path::default(),
            _ => Path::parse(&self.path).expect("checked when parsed"),
        }
    }

    /// The folder of a `file` URL.
    pub(super) fn folder(&self) -> std::path::PathBuf {
        format!("/{}", self.path).into()
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: &str| Err(StoreUrlError { reason: reason.to_owned() });
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse("it begins with s3://, gs://, az://, file:/// or memory:///");
        };
        let Some((_, scheme)) = SCHEMES.into_iter().find(|(name, _)| *name == scheme) else {
            return refuse("it begins with s3://, gs://, az://, file:/// or memory:///");
        };
        if rest.contains(['?', '#']) {
            return refuse("no query is allowed in it; credentials come from the environment");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_local = matches!(scheme, Scheme::File | Scheme::Memory);
        if is_local && !authority.is_empty() {
            return refuse("file and memory URLs have three slashes, as in file:///var/checkpoints");
        }
        // The container of an account, `az://container@account`, is no secret.
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        let is_bucket = match authority.split_once('@') {
            Some((container, account)) => scheme == Scheme::Azure && is_name(container) && is_name(account),
            None => is_name(authority),
        };
        if !is_local && !is_bucket {
            return refuse(
                "a bucket's name is made of letters, digits, '-', '.' and '_', without credentials",
            );
        }
        let path = path.trim_matches('/');
        if Path::parse(path).is_err() || (scheme == Scheme::File && path.is_empty()) {
            return refuse("its path has empty, '.' or '..' segments or characters that no store takes");
        }
        Ok(Self { scheme, authority: authority.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) =
            SCHEMES.into_iter().find(|(_, scheme)| *scheme == self.scheme).expect("all are there");
        write!(f, "{name}://{}/{}", self.authority, self.path)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Endpoint, region and credentials under the names of the usual environment variables (`AWS_ACCESS_KEY_ID`,
/// `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, …). Printed, it
/// shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreOptions(BTreeMap<String, String>);

impl StoreOptions {
    /// Keeps what belongs to a store and drops the rest; made for `std::env::vars()`.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_ours = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|start| name.starts_with(start));
        Self(vars.into_iter().filter(|(name, _)| is_ours(name)).collect())
    }

    /// Lower-case names, as the builders know them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (String, &str)> {
        self.0.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_go_there_and_back() {
        for text in
            ["s3://bucket/a/b", "gs://bucket/", "az://box@account/x", "file:///var/lib/ck", "memory:///"]
        {
            assert_eq!(text.parse::<StoreUrl>().expect(text).to_string(), text);
        }
        let url: StoreUrl = "s3://bucket/a/b/".parse().expect("valid");
        assert_eq!((url.prefix().as_ref(), url.to_string().as_str()), ("a/b", "s3://bucket/a/b"));
        assert_eq!("s3://bucket".parse::<StoreUrl>().expect("valid").prefix().as_ref(), "");
    }

    #[test]
    fn what_is_no_url_or_holds_a_secret_is_refused_without_repeating_it() {
        for text in [
            "",
            "bucket",
            "ftp://x/y",
            "s3://",
            "s3:///x",
            "file://host/x",
            "file:///",
            "s3://b/a//c",
            "s3://b/../c",
            "s3://id:hunter2@bucket/x",
            "s3://id@bucket/x",
            "az://box/x?sig=hunter2",
        ] {
            let err = text.parse::<StoreUrl>().expect_err(text);
            assert!(!err.to_string().contains("hunter2"), "{err}");
        }
    }

    #[test]
    fn options_show_their_names_only_and_keep_to_the_stores() {
        let vars = [("AWS_SECRET_ACCESS_KEY", "hunter2"), ("HOME", "/root")];
        let options = StoreOptions::from_vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(format!("{options:?}"), r#"{"AWS_SECRET_ACCESS_KEY"}"#);
        assert_eq!(options.iter().next(), Some(("aws_secret_access_key".to_owned(), "hunter2")));
    }
}
