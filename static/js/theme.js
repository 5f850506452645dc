// Runs before the first paint, so it is small and no module: it tells the style sheet that scripts run, and keeps the
// choice between light, dark and the system's colours in a cookie that the server reads for the next page.
(() => {
  const root = document.documentElement;
  root.dataset.js = '';
  const next = {'': 'light', light: 'dark', dark: ''};
  document.addEventListener('DOMContentLoaded', () => {
    const button = document.getElementById('theme');
    if (!button) return;
    const show = () => {
      const name = button.dataset[root.dataset.theme || 'system'];
      button.textContent = name;
      button.setAttribute('aria-label', button.dataset.label.replace('{name}', name));
    };
    button.addEventListener('click', () => {
      const theme = next[root.dataset.theme ?? ''] ?? '';
      if (theme) root.dataset.theme = theme;
      else delete root.dataset.theme;
      const secure = location.protocol === 'https:' ? '; secure' : '';
      document.cookie = `knm_theme=${theme}; path=/; samesite=lax; max-age=${theme ? 31536000 : 0}${secure}`;
      show();
    });
    show();
  });
})();
