// The page of a plan. What is confirmed is what was planned: once an option is changed the plan has to be made again.
// Without this script the confirmation sends what was planned all the same, for it is a form of its own.
const form = document.getElementById('plan');
const confirmation = document.getElementById('confirm');

const changed = el => {
  switch (el.type) {
    case 'checkbox': return el.checked !== el.defaultChecked;
    case 'select-one': {
      const first = el.options[Math.max(0, [...el.options].findIndex(o => o.defaultSelected))];
      return first !== undefined && el.value !== first.value;
    }
    case 'submit': return false;
  }
  return el.value !== el.defaultValue;
};

function look() {
  const button = confirmation.querySelector('[data-confirm]');
  if (!button) return;
  const stale = [...form.elements].some(changed);
  button.disabled = stale;
  confirmation.querySelector('[data-stale]').hidden = !stale;
}

if (form && confirmation) {
  document.addEventListener('input', e => { if (e.target.form === form) look(); });
  document.addEventListener('change', e => { if (e.target.form === form) look(); });
  window.addEventListener('pageshow', look); // a browser that goes back brings what was typed
  confirmation.addEventListener('submit', () => {
    try {
      sessionStorage.removeItem('knm.selection'); // it is done with
    } catch { /* storage is forbidden: then nothing was kept there */ }
  });
}

// A button that leads to a plan leaves the page; htmx must not take its form over.
document.addEventListener('submit', e => {
  if (e.submitter?.hasAttribute('formaction')) e.stopPropagation();
}, true);
