//! Source to slug to OCI image: runs buildpacks in a clean container, writes the layer, hands the image over.
//!
//! The way of a build: [`source`] checks what came and spools it as a tar; `buildpack` decides how to build it; `sandbox`
//! runs the buildpacks in a container of the [`stack`]'s build image under the limits of [`settings`]; `slug` packs the
//! built tree as a layer; [`oci`] stores the image; the runtime takes it into the engine, and gets it again from `kept` if it loses it.
//!
//! Must not: know apps' owners, releases or the store; run anything of the user's outside a container; hand a secret
//! of the platform to a build.

mod build;
mod buildpack;
mod clean;
mod container;
mod direct;
mod dockerfile;
pub mod error;
mod kept;
pub mod oci;
pub mod release_yaml;
mod run;
mod sandbox;
pub mod settings;
mod slug;
pub mod source;
pub mod stack;

pub use build::{BuildInput, BuildOutput, Builder};
pub use container::Prepared;
pub use error::{BuildError, Limit};
pub use kept::KeptImages;
pub use settings::{BuildSettings, Compression};
pub use source::Source;
pub use stack::{StackBuilder, StackError, StackRecord, lock::Lock};

/// Who builds and runs apps inside containers: `app`, made by every stack.
pub const APP_UID: u64 = 10001;
/// The group of [`APP_UID`].
pub const APP_GID: u64 = 10001;
