/** Writes a transcript as a Word document: a zip of three small XML files. */

import { strToU8, zipSync } from "fflate";
import { formatClock } from "./clock";
import { listParagraphs } from "./formats";
import type { Transcript } from "./types";

const HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>';
const OFFICE = "http://schemas.openxmlformats.org";

const CONTENT_TYPES = `${HEAD}<Types xmlns="${OFFICE}/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>`;
const RELATIONS = `${HEAD}<Relationships xmlns="${OFFICE}/package/2006/relationships"><Relationship Id="rId1" Type="${OFFICE}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>`;

/** Write the document: the file's name, then paragraphs with their times and speakers. */
export function formatDocx(transcript: Transcript): Uint8Array<ArrayBuffer> {
  const title = `<w:p><w:r><w:rPr><w:b/><w:sz w:val="32"/></w:rPr>${writeText(transcript.name)}</w:r></w:p>`;
  const paragraphs = listParagraphs(transcript).map(({ start, speaker, text }) => {
    const label = [formatClock(start), speaker].filter(Boolean).join(" ");
    return `<w:p><w:r><w:rPr><w:color w:val="666666"/></w:rPr>${writeText(`${label}  `)}</w:r><w:r>${writeText(text)}</w:r></w:p>`;
  });
  const document = `${HEAD}<w:document xmlns:w="${OFFICE}/wordprocessingml/2006/main"><w:body>${title}${paragraphs.join("")}</w:body></w:document>`;
  return zipSync({
    "[Content_Types].xml": strToU8(CONTENT_TYPES),
    "_rels/.rels": strToU8(RELATIONS),
    "word/document.xml": strToU8(document),
  }) as Uint8Array<ArrayBuffer>;
}

function writeText(text: string): string {
  return `<w:t xml:space="preserve">${escapeXml(text)}</w:t>`;
}

/** Escape text. XML has no way to write control characters, so they are left out. */
function escapeXml(text: string): string {
  return text
    .replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;");
}
