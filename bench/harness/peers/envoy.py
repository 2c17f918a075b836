"""Envoy."""

from .peer import Peer

ROUTE = """                      routes:
                        - match: { path_separated_prefix: /api }
                          route: { cluster: service, timeout: 15s }
                          request_headers_to_add:
                            - header: { key: x-bench, value: "on" }
                              append_action: OVERWRITE_IF_EXISTS_OR_ADD
"""
# A list of routes is tried one by one; a tree of prefixes is what an operator with thousands takes.
TREE = """                      matcher:
                        matcher_tree:
                          input:
                            name: path
                            typed_config:
                              "@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput
                              header_name: ":path"
                          prefix_match_map:
                            map:
"""
LEAF = """                              /api/{number:04}/:
                                action:
                                  name: route
                                  typed_config:
                                    "@type": type.googleapis.com/envoy.config.route.v3.Route
                                    match: {{ path_separated_prefix: /api/{number:04} }}
                                    route: {{ cluster: service, timeout: 15s }}
                                    request_headers_to_add:
                                      - header: {{ key: x-bench, value: "on" }}
                                        append_action: OVERWRITE_IF_EXISTS_OR_ADD
"""
HTTP2_OUT = """      connect_timeout: 5s
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: { http2_protocol_options: {} }
"""


class Envoy(Peer):
    name = program = "envoy"
    config = "envoy.yaml"
    metrics_path = "/stats/prometheus"
    requests_metric = r'^envoy_http_downstream_rq_total\{envoy_http_conn_manager_prefix="edge"\} (\S+)'
    connections_metric = r'^envoy_tcp_downstream_cx_total\{envoy_tcp_prefix="edge"\} (\S+)'
    workers = r"wrk:worker_\d+"

    def argv(self, run, scenario):
        return [self.path(), "-c", run / self.config, "--concurrency", str(scenario.workers), "--disable-hot-restart",
                "--log-level", "warning"]

    def edits(self, scenario):
        edits = []
        if scenario.workers > 1:
            edits.append(("      tcp_backlog_size: 1024\n", "      tcp_backlog_size: 1024\n      connection_balance_config: { exact_balance: {} }\n"))
        if scenario.protocol == "http2" and scenario.tls:
            edits.append(("alpn_protocols: [http/1.1]", "alpn_protocols: [h2, http/1.1]"))
        if scenario.protocol == "grpc":
            edits.append(("      connect_timeout: 5s\n", HTTP2_OUT))
            if scenario.messages == 0:
                edits.append(("timeout: 15s", "timeout: 0s"))
        if scenario.routes:
            edits.append((ROUTE, TREE + "".join(LEAF.format(number=number) for number in range(scenario.routes))))
        if scenario.hybrid:
            edits.append(("tls_maximum_protocol_version: TLSv1_3 }", "tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [X25519MLKEM768] }"))
        return edits
