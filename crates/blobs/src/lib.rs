//! outlast-blobs
