// Nodes of a graph by the ids that the server knows them by.

/** The node with this id, colon-joined ids ("10:5") leading into sub-graphs; null where the graph has none. */
export function nodeByPath(graph, path) {
  let node = null;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}
