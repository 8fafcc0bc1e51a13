//! Images: asking for them, pulling, removing.

use super::{
    Inner,
    engine::{Engine, QUICK, SLOW, refine},
};
use crate::{ImageFacts, RuntimeError};
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptionsBuilder};
use flex_model::ImageRef;
use futures_util::{StreamExt, stream::BoxStream};

impl Inner {
    pub(super) async fn has_image(&self, reference: &str) -> Result<bool, RuntimeError> {
        Ok(self.image_id(reference).await?.is_some())
    }

    /// The engine's id of an image, if it has it.
    pub(super) async fn image_id(&self, reference: &str) -> Result<Option<String>, RuntimeError> {
        check_reference(reference)?;
        let doing = format!("looking for image {reference}");
        match self.engine.call(&doing, QUICK, async |d| d.inspect_image(reference).await).await {
            Ok(image) => Ok(image.id),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) async fn pull(&self, reference: &str) -> Result<ImageRef, RuntimeError> {
        check_reference(reference)?;
        let (name, tag) = split_tag(reference);
        if !reference.starts_with("sha256:") && self.image_id(reference).await?.is_none() {
            let doing = format!("pulling {reference}");
            let options = CreateImageOptionsBuilder::default().from_image(name).tag(tag).build();
            let docker = self.engine.docker()?.clone();
            let mut progress = std::pin::pin!(docker.create_image(Some(options), None, None));
            while let Some(line) = Engine::next(&doing, &mut progress).await? {
                if let Some(message) = line.error_detail.and_then(|e| e.message) {
                    return Err(super::engine::by_status(&doing, 500, &message));
                }
            }
        }
        let doing = format!("looking for image {reference}");
        let image = self.engine.call(&doing, QUICK, async |d| d.inspect_image(reference).await).await?;
        let repository = repository(name);
        let digest = image.repo_digests.unwrap_or_default().into_iter().find(|d| d.split('@').next() == Some(repository));
        // Without a digest it was made on this host, and its id names it as well.
        let reference = digest.or(image.id).ok_or_else(|| RuntimeError::NotFound(format!("image {reference} has no id")))?;
        Ok(ImageRef { reference, manifest: None })
    }

    /// What an image says of itself.
    pub(super) async fn image_facts(&self, reference: &str) -> Result<ImageFacts, RuntimeError> {
        check_reference(reference)?;
        let doing = format!("looking at image {reference}");
        let image = self.engine.call(&doing, QUICK, async |d| d.inspect_image(reference).await).await?;
        let config = image.config.unwrap_or_default();
        let tcp = |p: &String| p.strip_suffix("/tcp").unwrap_or(p).parse().ok();
        let mut ports: Vec<u16> = config.exposed_ports.iter().flatten().filter_map(tcp).collect();
        ports.sort_unstable();
        let command = [config.entrypoint.unwrap_or_default(), config.cmd.unwrap_or_default()].concat();
        Ok(ImageFacts { command, ports, on_build: config.on_build.unwrap_or_default() })
    }

    /// The archive of an image, piece by piece.
    pub(super) fn export(&self, reference: &str) -> Result<BoxStream<'static, Result<bytes::Bytes, RuntimeError>>, RuntimeError> {
        check_reference(reference)?;
        let doing = format!("exporting {reference}");
        let pieces = self.engine.docker()?.export_image(reference);
        Ok(pieces.map(move |piece| piece.map_err(|e| refine(&doing, &e))).boxed())
    }

    /// Removes an image if nothing uses it; absent is fine.
    pub(super) async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        check_reference(reference)?;
        let doing = format!("removing image {reference}");
        let options = || RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        let mut names = vec![reference.to_owned()];
        // An id that still has names cannot be removed by it.
        if reference.starts_with("sha256:") {
            match self.engine.call(&doing, QUICK, async |d| d.inspect_image(reference).await).await {
                // The same slug has the same id in every installation that shares this engine.
                Ok(image) => {
                    if let Some(tags) = image.repo_tags.filter(|t| !t.is_empty()) {
                        names = tags.into_iter().filter(|t| !of_another(t, &self.names.cluster)).collect();
                    }
                }
                Err(RuntimeError::NotFound(_)) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        for name in names {
            match self.engine.call(&doing, SLOW, async |d| d.remove_image(&name, Some(options()), None).await).await {
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.state().chains.clear();
        Ok(())
    }
}

/// Whether an image's name was given by another installation: `flex-CLUSTER/…`.
fn of_another(name: &str, cluster: &str) -> bool {
    name.strip_prefix("flex-").and_then(|n| n.split_once('/')).is_some_and(|(owner, _)| owner != cluster && owner != "app")
}

/// A reference goes into a request's path: only what the grammar of references has.
pub(super) fn check_reference(reference: &str) -> Result<(), RuntimeError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '+');
    let parts = reference.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
    if reference.len() <= 512 && parts && reference.chars().all(good) {
        Ok(())
    } else {
        let shown: String = reference.chars().take(80).collect();
        Err(RuntimeError::Refused(format!("{shown:?} is no image: write name:tag, name@sha256:… or sha256:…")))
    }
}

/// The name, and the tag or digest after it; `latest` where there is none, since none would pull every tag.
fn split_tag(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

/// The name as the engine lists it: without the default registry.
fn repository(name: &str) -> &str {
    let name = split_tag(name).0;
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        assert_eq!(split_tag("nginx"), ("nginx", "latest"));
        assert_eq!(split_tag("nginx:1.2"), ("nginx", "1.2"));
        assert_eq!(split_tag("localhost:5000/a/b"), ("localhost:5000/a/b", "latest"));
        assert_eq!(split_tag("localhost:5000/a/b:t"), ("localhost:5000/a/b", "t"));
        assert_eq!(split_tag("a/b@sha256:00"), ("a/b", "sha256:00"));
        assert_eq!(repository("docker.io/library/nginx"), "nginx");
    }

    #[test]
    fn odd_references_are_refused() {
        for bad in ["", "a b", "../containers/x", "a//b", "a?x=1", "a/..", "ä"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
        for good in ["a", "a:1", "h:5/a/b:1", "a@sha256:00ff", "sha256:00ff"] {
            assert!(check_reference(good).is_ok(), "{good}");
        }
    }
}
