//! One request to the store: a deadline for each try, a bounded number of tries, and failures by what to do about them.

use std::error::Error;
use std::future::Future;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Attributes, GetOptions, ObjectMeta, PutMode, PutOptions, PutPayload};

use super::ObjectTier;

/// No small object (manifest, commit, extent hashes) is larger; whatever is, is not ours.
const SMALL_BYTES_MAX: u64 = 64 << 20;

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("could not {what}: there is no such object")]
    Missing { what: String },
    #[error("could not {what}: it is there already")]
    Exists { what: String },
    /// Trying again will not help.
    #[error(
        "could not {what}: the store refuses; check the bucket's name, the credentials and what they may do"
    )]
    Refused {
        what: String,
        #[source]
        source: Option<Box<object_store::Error>>,
    },
    /// Try again later. Says nothing of whether the bytes are there.
    #[error("could not {what} in {tries} tries; the store is unreachable or overloaded")]
    Transient {
        what: String,
        tries: u32,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct NoAnswer(std::time::Duration);

impl RequestError {
    /// For writes, where only the bucket can be missing.
    pub(super) fn no_bucket(self) -> Self {
        match self {
            Self::Missing { what } => Self::Refused { what, source: None },
            other => other,
        }
    }
}

/// The classes of the crate's errors; what is left is worth another try.
fn classify(what: &str, error: object_store::Error) -> Result<object_store::Error, RequestError> {
    use object_store::Error as E;
    let what = what.to_owned();
    match error {
        E::NotFound { .. } => Err(RequestError::Missing { what }),
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => {
            Err(RequestError::Exists { what })
        }
        source @ (E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. }) => {
            Err(RequestError::Refused { what, source: Some(Box::new(source)) })
        }
        other => match status_of(&other) {
            Some(404) => Err(RequestError::Missing { what }),
            Some(401 | 403 | 405) => Err(RequestError::Refused { what, source: Some(Box::new(other)) }),
            _ => Ok(other),
        },
    }
}

/// The HTTP status inside an error that the crate does not classify (listings, completions); only its text has it.
fn status_of(error: &object_store::Error) -> Option<u16> {
    let mut error: Option<&dyn Error> = Some(error);
    while let Some(this) = error {
        let text = this.to_string();
        if let Some((_, rest)) = text.split_once("non-2xx status code: ") {
            return rest.get(..3)?.parse().ok();
        }
        error = this.source();
    }
    None
}

impl ObjectTier {
    /// `bytes` go with it, in either direction. The call is made anew for each try.
    pub(super) async fn request<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        what: &str,
        bytes: u64,
        call: impl Fn() -> F,
    ) -> Result<T, RequestError> {
        self.tries(what, bytes, self.limits.tries_max.max(1), call).await
    }

    /// Like `request`, for what cannot be repeated.
    pub(super) async fn request_once<T>(
        &self,
        what: &str,
        bytes: u64,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, RequestError> {
        let mut call = Some(call);
        self.tries(what, bytes, 1, move || call.take().expect("one try")).await
    }

    async fn tries<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        what: &str,
        bytes: u64,
        tries_max: u32,
        mut call: impl FnMut() -> F,
    ) -> Result<T, RequestError> {
        let deadline = self.limits.deadline(bytes);
        let mut tries = 1;
        loop {
            let source: Box<dyn Error + Send + Sync> = match tokio::time::timeout(deadline, call()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => classify(what, error)?.into(),
                Err(_) => NoAnswer(deadline).into(),
            };
            if tries >= tries_max {
                return Err(RequestError::Transient { what: what.to_owned(), tries, source });
            }
            tracing::debug!(store = %self.url, what, tries, error = %source, "the object store is asked again");
            let mut random = [0];
            // Without randomness everybody waits the shortest time; no reason to fail.
            let _ = getrandom::fill(&mut random);
            tokio::time::sleep(self.limits.pause(tries, random[0])).await;
            tries += 1;
        }
    }

    /// Size and metadata of an object; `None` where there is none.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<(ObjectMeta, Attributes)>, RequestError> {
        let ask = || self.backend.objects.get_opts(path, GetOptions { head: true, ..GetOptions::default() });
        match self.request(&format!("look for {path}"), 0, ask).await {
            Ok(answer) => Ok(Some((answer.meta, answer.attributes))),
            Err(RequestError::Missing { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// A small object as a whole; `None` where there is none. One that is too large to be ours comes back empty, which
    /// is no content of any of ours.
    pub(super) async fn get_small(&self, path: &Path) -> Result<Option<Bytes>, RequestError> {
        let ask = || async {
            let answer = self.backend.objects.get_opts(path, GetOptions::default()).await?;
            if answer.meta.size > SMALL_BYTES_MAX { Ok(Bytes::new()) } else { answer.bytes().await }
        };
        match self.request(&format!("read {path}"), SMALL_BYTES_MAX, ask).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(RequestError::Missing { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    pub(super) async fn put(
        &self,
        path: &Path,
        payload: PutPayload,
        mode: PutMode,
        attributes: Attributes,
    ) -> Result<(), RequestError> {
        let bytes = payload.content_length() as u64;
        let write = || {
            let options =
                PutOptions { mode: mode.clone(), attributes: attributes.clone(), ..PutOptions::default() };
            self.backend.objects.put_opts(path, payload.clone(), options)
        };
        self.request(&format!("write {path}"), bytes, write).await.map_err(RequestError::no_bucket)?;
        Ok(())
    }
}
