"""The proxies: how each is started and where it tells what."""

from .envoy import Envoy
from .haproxy import HAProxy
from .meshwork import Meshwork
from .nginx import Nginx

PEERS = {peer.name: peer for peer in (Meshwork(), HAProxy(), Nginx(), Envoy())}
