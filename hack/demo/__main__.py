"""`make demo`: the main job from nothing to a report, or the reason why not."""

import sys
import time
from pathlib import Path

from demo import cluster, report
from demo.kubectl import Kubectl
from demo.steps import DemoError, Steps, say
from demo.story import NAMESPACE, OPERATOR_NAMESPACE, Story, run

LOGS = cluster.ROOT / "var/demo"


def main() -> int:
    """Run the story, print the report; return the process's exit status."""
    steps = Steps()
    try:
        story = run(steps)
    except DemoError as error:
        return _explain(steps, str(error))
    except KeyboardInterrupt:
        say("\nInterrupted. `make demo` goes on from here; `make cluster-down` removes everything.")
        return 130
    holds = _print_report(story)
    say(f"\nSeconds\n{_indented(steps.table())}")
    if not holds:
        return _explain(steps, "the figures above that say DIFFERS do not agree")
    _print_farewell(story.kubectl)
    return 0


def _print_report(story: Story) -> bool:
    say("\n" + "=" * 100)
    say("$ kubectl get shipkeeper --all-namespaces")
    say(_indented(story.kubectl.run("get", "shipkeeper", "--all-namespaces")))
    say("Rows (what the status says / what another source says)")
    rows = report.claims(story.migration, story.counts, story.expected)
    say(report.table(rows))
    say(f"    verified by content: {report.verification(story.migration)}")
    say(f"    valid indexes of the five: {story.valid_indexes}")
    say(f"\nGET {story.app['status']['url']}/ready, through the Service\n    {story.ready.status} {story.ready.body}")
    say(f"\n{story.sends.tried} sends tried, one after another\n{_indented(story.sends.text())}")
    return all(row.holds for row in rows) and story.valid_indexes == 5 and story.ready.status == 200


def _print_farewell(kubectl: Kubectl) -> None:
    command = f"{kubectl.program} --kubeconfig {kubectl.kubeconfig}"
    say("\nLook around:")
    say(f"    alias k='{command}'")
    say(f"    k -n {NAMESPACE} describe appdep,rlp,mig")
    say(f"    k -n {NAMESPACE} get events --sort-by=.lastTimestamp")
    say(f"    k -n {OPERATOR_NAMESPACE} logs deployment/shipkeeper-operator")
    say("Remove everything:\n    make cluster-down")


def _explain(steps: Steps, reason: str) -> int:
    say(f"\nFAILED at: {steps.current}\n{_indented(reason)}")
    folder = LOGS / time.strftime("%Y%m%d-%H%M%S")
    try:
        collect_logs(cluster.connect(), folder)
        say(f"Logs and the state of the cluster: {folder}")
    except DemoError as error:
        say(f"The cluster's logs cannot be read either: {error}")
    return 1


def collect_logs(kubectl: Kubectl, folder: Path) -> None:
    """Write the resources, events and logs of both namespaces into the folder. Raises DemoError without a cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    for namespace in (NAMESPACE, OPERATOR_NAMESPACE):
        everything = "all,shipkeeper,events,configmaps"
        options = ("--namespace", namespace)
        (folder / f"{namespace}.txt").write_text(kubectl.run("get", everything, *options, "--output", "wide"))
        (folder / f"{namespace}.yaml").write_text(
            kubectl.run("get", "pods,jobs,shipkeeper", *options, "--output", "yaml")
        )
        for pod in kubectl.list("pods", namespace=namespace):
            name = pod["metadata"]["name"]
            log = _log_of(kubectl, name, namespace=namespace)
            (folder / f"{namespace}-{name}.log").write_text(log)


def _log_of(kubectl: Kubectl, pod: str, *, namespace: str) -> str:
    try:
        return kubectl.run("logs", pod, "--namespace", namespace, "--all-containers", "--tail=2000")
    except DemoError as error:
        return str(error)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
