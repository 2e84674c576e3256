/** An error as a sentence, which screen readers announce; nothing for an empty text. */
export function ErrorMessage({ text }: { text: string }) {
  return <div role="alert">{text && <p class="error">{text}</p>}</div>;
}
