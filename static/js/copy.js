// Buttons that put a command into the clipboard.
import {t, toast} from "./text.js";

// The clipboard interface exists on https and loopback only; the older way works elsewhere.
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'vh';
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  if (!done) throw new Error('refused');
}

document.addEventListener('click', async e => {
  const button = e.target.closest('[data-copy]');
  if (!button) return;
  try {
    await copy(button.dataset.copy);
    toast(t('copied'));
  } catch {
    toast(t('copyfailed'));
  }
  button.focus();
});
