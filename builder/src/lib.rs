//! Source to slug to OCI image: runs buildpacks in a clean container, writes the layer, hands the image over.
//!
//! Must not: know apps' owners, releases or the store; run anything of the user's outside a container; hand a secret
//! of the platform to a build.
