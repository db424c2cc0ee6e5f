//! The crate's stores, opened from a URL and options.

use std::io;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::url::{Scheme, StoreOptions, StoreUrl};

/// A connection is there by then, or there is none.
const CONNECT_TIMEOUT: &str = "5s";
/// The real limit is `ObjectLimits::deadline`, which knows how many bytes a request has; this one only must not be shorter.
const CLIENT_TIMEOUT: &str = "1h";

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenTierError {
    #[error("the object store {url} cannot be opened with these options; check the {prefix}* variables")]
    Options {
        url: StoreUrl,
        prefix: &'static str,
        #[source]
        source: Box<object_store::Error>,
    },
    #[error("the folder of {url} cannot be used")]
    Folder {
        url: StoreUrl,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone)]
pub(super) struct Backend {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Uploads that survive a restart of this process; a plain folder has none.
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
    /// Objects can carry metadata, also when they come in parts.
    pub(super) has_attributes: bool,
}

impl Backend {
    pub(super) fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenTierError> {
        let refuse = |prefix| {
            move |source| OpenTierError::Options { url: url.clone(), prefix, source: Box::new(source) }
        };
        match url.scheme {
            Scheme::Memory => Ok(Self::new(InMemory::new(), true)),
            Scheme::File => folder(url),
            Scheme::S3 => s3(url, options).map(|store| Self::new(store, true)).map_err(refuse("AWS_")),
            Scheme::Gcs => gcs(url, options).map(|store| Self::new(store, true)).map_err(refuse("GOOGLE_")),
            // The crate takes no metadata for uploads in parts there.
            Scheme::Azure => {
                azure(url, options).map(|store| Self::new(store, false)).map_err(refuse("AZURE_"))
            }
        }
    }

    fn new(store: impl ObjectStore + MultipartStore, has_attributes: bool) -> Self {
        let store = Arc::new(store);
        Self { objects: store.clone(), parts: Some(store), has_attributes }
    }
}

fn folder(url: &StoreUrl) -> Result<Backend, OpenTierError> {
    let folder = url.folder();
    let unusable = |source| OpenTierError::Folder { url: url.clone(), source };
    std::fs::create_dir_all(&folder).map_err(unusable)?;
    let store =
        LocalFileSystem::new_with_prefix(folder).map_err(|source| unusable(io::Error::other(source)))?;
    // Off by default in the crate, and a `COMMIT` must not outlive its data in a power cut.
    let store = store.with_fsync(true).with_automatic_cleanup(true);
    Ok(Backend { objects: Arc::new(store), parts: None, has_attributes: false })
}

/// Ours first, so that an operator's own value wins. Names that the builder does not know are told, never their values.
macro_rules! configure {
    ($builder:expr, $key:ident, $options:expr) => {{
        use_ring();
        let builder = $builder
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_config($key::Client(ClientConfigKey::Timeout), CLIENT_TIMEOUT)
            .with_config($key::Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT);
        $options.iter().fold(builder, |builder, (name, value)| match name.parse::<$key>() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => {
                tracing::debug!(name, "a variable that this store does not know is ignored");
                builder
            }
        })
    }};
}

fn s3(url: &StoreUrl, options: &StoreOptions) -> object_store::Result<object_store::aws::AmazonS3> {
    // One key a request is the core of S3 that every server has; and only exact keys are removed.
    let builder = AmazonS3Builder::new().with_bucket_name(&url.authority).with_disable_bulk_delete(true);
    configure!(builder, AmazonS3ConfigKey, options).build()
}

fn gcs(
    url: &StoreUrl,
    options: &StoreOptions,
) -> object_store::Result<object_store::gcp::GoogleCloudStorage> {
    let builder = GoogleCloudStorageBuilder::new().with_bucket_name(&url.authority);
    configure!(builder, GoogleConfigKey, options).build()
}

fn azure(
    url: &StoreUrl,
    options: &StoreOptions,
) -> object_store::Result<object_store::azure::MicrosoftAzure> {
    let builder = MicrosoftAzureBuilder::new().with_url(format!("az://{}", url.authority));
    configure!(builder, AzureConfigKey, options).build()
}

/// TLS by `ring`, unless the process has chosen already.
fn use_ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
