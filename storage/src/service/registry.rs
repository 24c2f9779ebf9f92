//! The services of a build, by name.

use std::sync::Arc;

use super::ErasedService;

/// The services that a node runs: the same list, in the same order, on every node of a cluster.
#[derive(Clone, Default)]
pub struct Registry {
    services: Vec<Arc<dyn ErasedService>>,
}

impl Registry {
    /// No services.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more service.
    ///
    /// # Panics
    /// When the name is taken or is not lower-case letters: a mistake in the build, found at start.
    #[must_use]
    pub fn with(mut self, service: impl ErasedService + 'static) -> Self {
        let name = service.name();
        assert!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()),
            "bad service name {name:?}"
        );
        let reserved = [
            crate::delta::SESSION_SERVICE,
            crate::delta::SYSTEM_SERVICE,
            "event",
            // Segments of the HTTP API.
            "sessions",
            "batch",
            "watch",
            "log",
            "cluster",
            "status",
        ];
        assert!(!reserved.contains(&name), "the service name {name:?} is reserved");
        assert!(self.get(name).is_none(), "two services are called {name:?}");
        self.services.push(Arc::new(service));
        self
    }

    /// The service called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn ErasedService>> {
        self.services.iter().find(|service| service.name() == name)
    }

    /// Where the service called `name` is in the list.
    pub(crate) fn place_of(&self, name: &str) -> Option<usize> {
        self.services.iter().position(|service| service.name() == name)
    }

    /// The service at a place that [`Self::place_of`] gave.
    pub(crate) fn at(&self, place: usize) -> &dyn ErasedService {
        &*self.services[place]
    }

    /// Their names, in order.
    pub fn names(&self) -> Vec<String> {
        self.iter().map(|service| service.name().to_owned()).collect()
    }

    /// All services, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn ErasedService>> {
        self.services.iter()
    }
}
