//! sipcast-lab: topologies of network namespaces, real peers, demo, scenarios, benchmarks.
