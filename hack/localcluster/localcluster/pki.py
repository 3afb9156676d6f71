"""Keys and certificates of a cluster, made with openssl because the standard library cannot sign certificates."""

from dataclasses import dataclass
from pathlib import Path

from localcluster.paths import write_atomically
from localcluster.shell import run

VALID_DAYS = "3650"  # A cluster for development is thrown away long before.


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate."""

    key: Path
    certificate: Path


class Authority:
    """A certificate authority in a folder. What is there already is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        if not self.certificate.exists():
            extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,digitalSignature"
            self._create(KeyPair(self._key, self.certificate), "/CN=shipkeeper-local-cluster", extensions)

    def client(self, name: str, *, user: str, group: str = "") -> KeyPair:
        """A client certificate: Kubernetes takes the common name as the user and the organization as a group."""
        subject = f"/O={group}/CN={user}" if group else f"/CN={user}"
        return self._signed(name, subject, "extendedKeyUsage=clientAuth")

    def server(self, name: str, *, user: str, addresses: tuple[str, ...], names: tuple[str, ...] = ()) -> KeyPair:
        """A serving certificate for addresses and DNS names."""
        alternatives = ",".join([*(f"IP:{address}" for address in addresses), *(f"DNS:{each}" for each in names)])
        return self._signed(name, f"/CN={user}", f"extendedKeyUsage=serverAuth\nsubjectAltName={alternatives}")

    def service_account_key(self) -> Path:
        """The key that signs the tokens of service accounts; the API server takes its public half from it."""
        path = self.folder / "service-account.key"
        if not path.exists():
            draft = path.with_suffix(".draft")
            run("openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", draft)
            draft.chmod(0o600)
            draft.replace(path)
        return path

    def _signed(self, name: str, subject: str, extensions: str) -> KeyPair:
        pair = KeyPair(self.folder / f"{name}.key", self.folder / f"{name}.crt")
        if not pair.certificate.exists():
            usage = "keyUsage=critical,digitalSignature,keyEncipherment\nbasicConstraints=critical,CA:FALSE"
            self._create(
                pair, subject, f"{usage}\n{extensions}", "-CA", str(self.certificate), "-CAkey", str(self._key)
            )
        return pair

    def _create(self, pair: KeyPair, subject: str, extensions: str, *issuer: str) -> None:
        # An own configuration: what the machine's openssl.cnf adds to certificates is not known.
        config = pair.certificate.with_suffix(".cnf")
        write_atomically(config, f"[req]\ndistinguished_name=dn\n[dn]\n[ext]\n{extensions}\n")
        draft = pair.certificate.with_suffix(".draft")
        run(
            *(
                "openssl",
                "req",
                "-x509",
                "-config",
                config,
                "-extensions",
                "ext",
                "-subj",
                subject,
                "-days",
                VALID_DAYS,
            ),
            *(
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-keyout",
                pair.key,
                "-out",
                draft,
            ),
            *issuer,
        )
        pair.key.chmod(0o600)
        # The certificate comes last, so that its presence means that the pair is whole.
        draft.replace(pair.certificate)
