// The words of the scripts come from the page, in its language; the scripts hold none of their own.
const words = document.getElementById('texts')?.dataset ?? {};

export const t = (key, vars = {}) => (words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => vars[name] ?? '');

// count chooses between the key's forms for one and for many.
export const count = (key, n) => t(key + (n === 1 ? 'One' : 'Other'), {n: n.toLocaleString(document.documentElement.lang)});

export const clock = at => new Intl.DateTimeFormat(document.documentElement.lang, {hour: '2-digit', minute: '2-digit', second: '2-digit'}).format(at);

let toastTimer = 0;

// toast says something in passing; what matters stays in the page until it is dismissed.
export function toast(text) {
  const box = document.getElementById('toast');
  if (!box) return;
  box.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { box.textContent = ''; }, 4000);
}
