//! Reads what outlived every coordinator: the `COMMIT`s of a bucket, and the seals that agents keep beside the bytes. Both
//! are the same text, and are checked alike; what is made of them is `outlast_control`'s.

mod agents;
mod seal;
mod store;

use outlast_blobs::objects::{ObjectTier, OpenTierError, RequestError, StoreOptions, StoreUrl};
use outlast_control::state::Remains;
use outlast_proto::status::Failure;

/// Why the remains were not read. All or nothing: what was overlooked would be lost to the new cluster.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("the object store cannot be opened")]
    Open(#[from] OpenTierError),
    #[error("the object store cannot be read")]
    Store(#[from] RequestError),
    #[error("the agent at {address} did not tell what it has")]
    Agent {
        address: String,
        #[source]
        source: Failure,
    },
}

/// Asks the store, where one is given, and each agent (`host:port`).
///
/// # Errors
/// See [`FindError`].
pub async fn find_remains(
    store: Option<(&StoreUrl, &StoreOptions)>,
    agents: &[String],
) -> Result<Remains, FindError> {
    let mut remains = Remains::default();
    for address in agents {
        let failed = |source| FindError::Agent { address: address.clone(), source };
        agents::find(address, &mut remains).await.map_err(failed)?;
    }
    if let Some((url, options)) = store {
        let tier = ObjectTier::open(url, options)?;
        store::find(&tier, &mut remains).await?;
    }
    Ok(remains)
}
