"""Does a student inherit robustness? Table 4 of Nayak 2021."""

from __future__ import annotations

from exml_fast.evaluation import accuracy
from exml_fast.reproduction.lab import Lab, first_images
from exml_fast.reproduction.lab_settings import (
    AttackTable,
    DistillationTable,
    ImpressionsTable,
    NetworkTable,
    TeacherTable,
    require_package,
)
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.transfer.robustness import ATTACKS, attack_accuracies
from exml_fast.validation import settings

__all__ = ["Robustness", "run"]


@settings
class Robustness:
    """A preset of task "robustness"."""

    data: str
    teacher: TeacherTable
    impressions: ImpressionsTable
    student: NetworkTable
    distillation: DistillationTable
    attack: AttackTable

    def check(self) -> None:
        if self.teacher.expert is not None:
            raise ValueError("teacher.expert: task 'robustness' trains its teachers, one of them under attack")
        require_package("art", "attacks", "adversarial-robustness-toolbox")


def run(preset: Preset, context: Context) -> Outcome:
    """Table 4: attacks on a plain and a robust teacher, and on the students of their impressions.

    With ``[attack.distillation]`` also on a student of the robust teacher's impressions under attack (ours).
    """
    lab = Lab(preset, Robustness, context)
    table = lab.settings.attack
    test = first_images(lab.data.test, table.test_images)
    for robust in (False, True):
        kind = "robust" if robust else "non-robust"
        teacher = lab.teacher(robust=robust)
        impressions = lab.impressions(teacher, f"impressions of the {kind} teacher")
        student = lab.student(teacher, impressions.images, f"student of the {kind} teacher")
        lab.save(student, "student", f"student_of_the_{kind}_teacher")
        networks = {"Teacher": teacher, "Student": student}
        if robust and table.distillation is not None:
            networks["Student under attack"] = lab.student(
                teacher, impressions.images, "student under attack", attack=table.distillation
            )
            lab.save(networks["Student under attack"], "student", "student_under_attack")
        for who, model in networks.items():
            lab.percent(f"{kind} {who}/A_nat", accuracy(model, test, lab.spec))
            with lab.stage("attacks"):
                found = attack_accuracies(model, test, lab.spec, table.attack, ATTACKS, seed=context.seed)
            for name in ATTACKS:
                lab.percent(f"{kind} {who}/{name} A_adv", found.adversarial[name])
                lab.percent(f"{kind} {who}/{name} F.R.", found.fooling[name])
    return lab.outcome
