"""The Azure SDK for Python (azure-containerregistry) through whatever stands under the registry's name.

Arguments: the registry's URL, where Entra ID is, tenant, client id, secret. REQUESTS_CA_BUNDLE names the CA.
"""

import hashlib
import io
import json
import sys
import time
import urllib.parse
import urllib.request

from azure.containerregistry import ArtifactTagProperties, ContainerRegistryClient
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

AUDIENCE = "https://containerregistry.azure.net"


class ServicePrincipal:
    """What azure.identity.ClientSecretCredential does, without its check that the authority is one of Microsoft's."""

    def __init__(self, authority, tenant, client, secret):
        self.url = f"{authority}/{tenant}/oauth2/v2.0/token"
        self.form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret}

    def get_token(self, *scopes, **_):
        form = urllib.parse.urlencode(self.form | {"scope": " ".join(scopes)}).encode()
        with urllib.request.urlopen(self.url, form) as answer:
            token = json.load(answer)
        return AccessToken(token["access_token"], int(time.time()) + token["expires_in"])


def refused(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{call} should have raised {kind}")


def manifest_of(config, layers):
    def descriptor(media_type, digest, data):
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.example.config.v1+json", *config),
        "layers": [descriptor("application/octet-stream", *layer) for layer in layers],
    }


def whole(client, repository, digest):
    return b"".join(client.download_blob(repository, digest))


def main(endpoint, authority, tenant, client_id, secret):
    principal = ServicePrincipal(authority, tenant, client_id, secret)
    client = ContainerRegistryClient(endpoint, principal, audience=AUDIENCE)
    repository = "sdk/artifact"

    # More than one chunk of 4 MiB, and less than one.
    contents = [bytes(range(256)) * 4 * 9000, b"small", b"{}"]
    blobs = []
    for data in contents:
        digest, size = client.upload_blob(repository, io.BytesIO(data))
        assert digest == "sha256:" + hashlib.sha256(data).hexdigest() and size == len(data), digest
        assert whole(client, repository, digest) == data
        blobs.append((digest, data))
    manifest = manifest_of(blobs[2], blobs[:2])
    digest = client.set_manifest(repository, manifest, tag="1.0")
    again = client.get_manifest(repository, "1.0")
    assert again.digest == digest and again.manifest == manifest
    client.set_manifest(repository, manifest, tag="2.0")

    assert repository in client.list_repository_names()
    properties = client.get_repository_properties(repository)
    assert properties.manifest_count == 1 and properties.tag_count == 2, vars(properties)
    # Pages of one.
    tags = [tag.name for tag in client.list_tag_properties(repository, results_per_page=1)]
    assert tags == ["1.0", "2.0"], tags
    assert [m.digest for m in client.list_manifest_properties(repository)] == [digest]
    tag = client.get_tag_properties(repository, "1.0")
    assert tag.digest == digest and tag.can_delete

    changed = client.update_tag_properties(repository, "1.0", ArtifactTagProperties(can_delete=False, can_write=False))
    assert not changed.can_delete and not client.get_tag_properties(repository, "1.0").can_write
    refused(HttpResponseError, lambda: client.delete_tag(repository, "1.0"))
    client.update_tag_properties(repository, "1.0", can_delete=True, can_write=True)

    # Deleted is deleted, at once.
    client.delete_tag(repository, "1.0")
    refused(ResourceNotFoundError, lambda: client.get_tag_properties(repository, "1.0"))
    refused(ResourceNotFoundError, lambda: client.get_manifest(repository, "1.0"))
    client.delete_manifest(repository, digest)
    refused(ResourceNotFoundError, lambda: client.get_manifest(repository, digest))
    client.delete_blob(repository, blobs[1][0])
    refused(ResourceNotFoundError, lambda: whole(client, repository, blobs[1][0]))

    # Nobody in particular: what is private is refused, what is public can be read and not written.
    for name in ["sdk/private", "sdk/public"]:
        client.upload_blob(name, io.BytesIO(contents[0]))
        client.set_manifest(name, manifest_of(blobs[0], []), tag="1.0")
    nobody = ContainerRegistryClient(endpoint, audience=AUDIENCE)
    got = nobody.get_manifest("sdk/public", "1.0")
    assert whole(nobody, "sdk/public", got.manifest["config"]["digest"]) == contents[0]
    refused(ClientAuthenticationError, lambda: nobody.get_manifest("sdk/private", "1.0"))
    refused(ClientAuthenticationError, lambda: nobody.delete_tag("sdk/public", "1.0"))

    client.delete_repository("sdk/public")
    refused(ResourceNotFoundError, lambda: client.get_repository_properties("sdk/public"))
    refused(ResourceNotFoundError, lambda: client.get_manifest("sdk/public", "1.0"))


if __name__ == "__main__":
    main(*sys.argv[1:])
