"""A page about a finding as an Encapsulated PDF (PS3.3 A.45.1), which highdicom doesn't build."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from normscan.dicom.identity import MAKER, Identity

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INHERITED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "SpecificCharacterSet",
    "PatientAge", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip


def document(identity: Identity, image: Dataset, page: bytes) -> Dataset:
    """Build the object of a page.

    Args:
        identity: of the finding.
        image: the source image.
        page: the PDF.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

    made = Dataset()
    for name in INHERITED:
        if name in image:
            made[name] = image[name]
    for name in MAY_BE_EMPTY:
        if name not in made:
            setattr(made, name, None)
    usual = identity.of("page")
    made.SOPClassUID, made.SOPInstanceUID = EncapsulatedPDFStorage, usual["sop_instance_uid"]
    made.SeriesInstanceUID = usual["series_instance_uid"]
    made.SeriesNumber, made.InstanceNumber = usual["series_number"], usual["instance_number"]
    made.SeriesDescription, made.Modality, made.ConversionType = f"{MAKER} page", "DOC", "WSD"
    made.Manufacturer = MAKER
    made.ManufacturerModelName = identity.equipment["manufacturer_model_name"]
    made.SoftwareVersions = identity.equipment["software_versions"]
    made.DeviceSerialNumber = identity.equipment["device_serial_number"]
    made.ContentDate, made.ContentTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    made.AcquisitionDateTime, made.BurnedInAnnotation = None, "NO"
    made.DocumentTitle = "Finding"
    title, concept = codes.DCM.ImagingMeasurementReport, Dataset()
    concept.CodeValue, concept.CodeMeaning = title.value, title.meaning
    concept.CodingSchemeDesignator = title.scheme_designator
    made.ConceptNameCodeSequence = [concept]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(page)
    made.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made
