package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file holds the documents to what they say.

// documents are the README and what it leads to, in the order in which they are
// read.
var documents = []string{"README.md", "docs/api.md", "docs/pipelines.md", "docs/run.md", "docs/coming-from.md", "docs/operate.md", "docs/several.md", "docs/design.md"}

// block is a piece of a document that is to be pasted.
type block struct {
	language string
	text     string
}

var fenced = regexp.MustCompile("(?sm)^```(\\w+)\n(.*?)^```$")

// readmeBlocks returns the documents' blocks that have words in them.
func readmeBlocks(t testing.TB, words string) (blocks []block) {
	t.Helper()
	for _, name := range documents {
		for _, found := range fenced.FindAllStringSubmatch(lockertest.Read(t, name), -1) {
			if strings.Contains(found[2], words) {
				blocks = append(blocks, block{found[1], found[2]})
			}
		}
	}
	return blocks
}

// readmeBlock returns the one block that has the words.
func readmeBlock(t testing.TB, words string) string {
	t.Helper()
	blocks := readmeBlocks(t, words)
	if len(blocks) != 1 {
		t.Fatalf("the README has %d blocks with %q", len(blocks), words)
	}
	return blocks[0].text
}

// script returns a block's commands, and what they print where it says so.
func (b block) script() (commands []string, printed string) {
	for line := range strings.Lines(b.text) {
		command, prompted := strings.CutPrefix(line, "$ ")
		switch {
		case prompted, b.language == "sh":
			commands = append(commands, command)
		default:
			printed += line
		}
	}
	return commands, printed
}

// runBy says who runs the README's commands that begin so. TestReadme and
// TestWayBack run those of the blocks with curl.
var runBy = map[string]string{
	"go run .":                    "TestGoRun",
	"CGO_ENABLED=0 go build":      ".ci/run",
	"go test ./...":               ".ci/run",
	"LOCKER_SOAK=2m go test":      ".ci/run",
	"go test -run '^$' -bench":    ".ci/run",
	"go test -run '^$' -fuzz":     ".ci/run",
	".ci/release linux/amd64":     "TestRelease",
	"examples/tls.sh":             "TestExampleCertificateIsRenewed",
	"docker load":                 "TestRelease",
	"docker compose":              "TestReleasedCompose",
	"docker tag":                  "TestRelease",
	"docker push":                 "nobody: it needs a registry",
	"kubectl ":                    "nobody: it needs a cluster. TestKubernetes and TestReleasedKubernetes look at what it is given",
	"mkdir -p resource-types":     "TestRelease",
	"tar -xzOf release/":          "TestRelease",
	"echo '{\"type\": \"locker\"": "TestRelease",
	"cp locker.json":              "TestGoRun",
	"bosh ":                       "nobody: it needs a BOSH director. TestReleasedBosh and TestBoshManifests look at what it is given",
	"export LOCKER_URI=":          "TestRunAsDocumented",
	"locker run ":                 "TestRunAsDocumented",
	".ci/etcd":                    "nobody: it needs Go's module proxy, and runs for minutes",
	"locker import":               "TestImportExport",
	"locker export":               "TestImportExport",
	"etcdctl user add":            "TestRoles",
	"etcdctl role ":               "TestRoles",
	"etcdctl user grant-role":     "TestRoles",
	"etcd --name":                 "TestRoles",
	"  --":                        "TestRoles",
	"export LOCKER_ETCD=":         "TestImportExport",
	"useradd ":                    "TestReadmeInstall",
	"install ":                    "TestReadmeInstall",
	"printf ":                     "TestReadmeInstall",
}

// TestReadmeCommandsAreRun wants somebody to run every command that the README
// shows, and a command of the gate to stand there as it does in the README.
func TestReadmeCommandsAreRun(t *testing.T) {
	gate, tests := lockertest.Read(t, ".ci/run"), command(t, ".", "sh", "-c", "cat *_test.go test/*_test.go")
	unseen := maps.Clone(runBy)
	for _, b := range readmeBlocks(t, "") {
		if b.language != "sh" && b.language != "console" || strings.Contains(b.text, "curl") {
			continue
		}
		commands, _ := b.script()
		for _, command := range commands {
			somebody := false
			for begin, by := range runBy {
				if strings.HasPrefix(command, begin) {
					somebody = by != ".ci/run" || strings.Contains(gate, begin)
					delete(unseen, begin)
				}
			}
			if !somebody {
				t.Errorf("nobody runs %s", command)
			}
		}
	}
	for _, by := range runBy {
		if strings.HasPrefix(by, "Test") && !strings.Contains(tests, "\nfunc "+by+"(") {
			t.Errorf("there is no %s", by)
		}
	}
	for command := range unseen {
		t.Errorf("the README does not have %s any more", command)
	}
}

// TestGoRun starts the locker the way the README does, and copies its state.
func TestGoRun(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", ".")
	cmd.Env = append(os.Environ(), "LISTEN=127.0.0.1:0", "LOCKER_CONFIG="+filepath.Join(dir, "locker.json"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go passes no signal on
	log := lockertest.NewLog()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		cmd.Wait()
	})
	url := "http://" + log.Await(t, `msg=start .*address=(\S+)`)[1]
	if status, body := lockertest.Send(t.Context(), "PUT", url+"/lock/l", `{"key": "k"}`); status != http.StatusOK {
		t.Errorf("take: %d %s", status, body)
	}
	command(t, dir, "sh", "-c", readmeBlock(t, "cp locker.json"))
	if n := savedClaims(t, filepath.Join(dir, "locker.json.backup")); n != 1 {
		t.Errorf("%d claims are in the copy", n)
	}
}

// elsewhere runs a script in which what it writes to the machine's folders goes
// to a memory file system of its own.
const elsewhere = `mount -t tmpfs tmpfs "$1"
for folder in /etc /usr/local/bin; do
	mkdir -p "$1$folder/upper" "$1$folder/work"
	mount -t overlay overlay -o "lowerdir=$folder,upperdir=$1$folder/upper,workdir=$1$folder/work" "$folder"
done
`

// TestReadmeInstall installs the locker for systemd as the README says, on a
// machine that forgets it, and starts it as the unit's user.
func TestReadmeInstall(t *testing.T) {
	lockertest.NeedRoot(t)
	if err := exec.Command("unshare", "--mount", "true").Run(); err != nil {
		lockertest.Skip(t, "a mount namespace: "+err.Error())
	}
	dir := t.TempDir()
	folder(t, filepath.Join(dir, "release"), 0o755)
	if err := os.Link(lockertest.Released(t, "locker"), filepath.Join(dir, "release", "locker-linux-amd64")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS("examples")); err != nil {
		t.Fatal(err)
	}
	script := elsewhere + readmeBlock(t, "useradd") + `
stat -c %a /etc/systemd/system/locker.service
stat -c '%a %U' /etc/locker/env
. /etc/locker/env && test ${#AUTH_PASS} -ge 32
setpriv --reuid locker --regid locker --clear-groups /usr/local/bin/locker -version`
	scratch := filepath.Join(dir, "scratch")
	folder(t, scratch, 0o755)
	got := command(t, dir, "unshare", "--mount", "bash", "-euc", script, "bash", scratch)
	if !strings.HasPrefix(got, "644\n600 root\nlocker ") {
		t.Errorf("got %s", got)
	}
}

// TestReadme pastes the README's commands for curl into a shell, in their
// order, and compares what they print. Times and versions are not compared, nor
// the order of lines: one of them comes from the background.
func TestReadme(t *testing.T) {
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			lockertest.Skip(t, err.Error())
		}
	}
	p := lockertest.Start(t)
	here := strings.NewReplacer("localhost:8910", p.Address, "10.10.10.10:8910", p.Address)
	commands := 0
	for _, b := range readmeBlocks(t, ":8910/lock") {
		script, want := b.script()
		text := here.Replace(strings.Join(script, ""))
		got, err := exec.CommandContext(t.Context(), "bash", "-c", text).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", text, err, got)
		}
		if got, want := withoutTimes(string(got)), withoutTimes(want); b.language == "console" && got != want {
			t.Errorf("the README's commands\n%sprint\n%s\nand not\n%s", text, got, want)
		}
		commands += len(script)
	}
	if commands < 14 {
		t.Errorf("only %d commands found", commands)
	}
}

var varies = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|Date: .*|"version":"[^"]*"|\r`)

func withoutTimes(text string) string {
	return strings.Join(slices.Sorted(strings.Lines(varies.ReplaceAllString(text, ""))), "")
}

// TestReadmeNamesFunctions wants each function that the README names, such as
// `committer.run`, to exist.
func TestReadmeNamesFunctions(t *testing.T) {
	declared := map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				declared[receiver(f)+"."+f.Name.Name] = true
			}
		}
	}
	life := lockertest.Read(t, "docs/design.md")
	named := regexp.MustCompile("`([a-z][A-Za-z]*\\.[A-Za-z]+)`").FindAllStringSubmatch(life, -1)
	for _, n := range named {
		if _, err := os.Stat(n[1]); err != nil && !declared[n[1]] {
			t.Errorf("there is no %s", n[1])
		}
	}
	if len(named) < 15 {
		t.Errorf("only %d names found", len(named))
	}
}

func receiver(f *ast.FuncDecl) string {
	kind := f.Recv.List[0].Type
	if pointer, ok := kind.(*ast.StarExpr); ok {
		kind = pointer.X
	}
	if generic, ok := kind.(*ast.IndexExpr); ok {
		kind = generic.X
	}
	return kind.(*ast.Ident).Name
}

// readPipelines reads YAML documents, separated by lines of dashes, as Concourse
// would: each name is an identifier, and what a plan gets or puts is a resource.
const readPipelines = `import re, sys, yaml
resources, steps, names = set(), set(), []
def walk(step):
    if isinstance(step, list):
        for s in step: walk(s)
    elif isinstance(step, dict):
        for kind in ("get", "put"):
            if kind in step: steps.add(step[kind])
        for v in step.values(): walk(v)
for text in sys.stdin.read().split("\n-----\n"):
    doc = yaml.safe_load(text)
    if not isinstance(doc, dict): sys.exit("no mapping: " + text)
    if set(doc) & {"jobs", "resources", "resource_types"}:
        resources |= {r["name"] for r in doc.get("resources", [])}
        names += [x["name"] for part in ("jobs", "resources", "resource_types") for x in doc.get(part, [])]
        for job in doc.get("jobs", []):
            if not job.get("plan"): sys.exit("no plan: " + job["name"])
            walk(job)
            files = [s["file"].split("/")[0] for s in job["plan"] if isinstance(s, dict) and "file" in s]
            gets = [s.get("get") for s in job["plan"]]
            if not set(files) <= set(gets): sys.exit("a task's file comes from nowhere: " + job["name"])
bad = [n for n in names if not re.fullmatch(r"[a-z][a-z0-9_.-]*", n)]
if bad or steps - resources or len(names) < 3: sys.exit(f"names {bad}, not resources {steps - resources}, {len(names)} names")
`

// TestPipelinesLoad loads the YAML of the documents, and the example.
func TestPipelinesLoad(t *testing.T) {
	if err := exec.Command("/usr/bin/python3", "-c", "import yaml").Run(); err != nil {
		lockertest.Skip(t, "python3-yaml: "+err.Error())
	}
	for name, texts := range map[string][]string{"README.md": nil, "docs/pipelines.md": nil, "the example": {lockertest.Read(t, "examples/pipeline/pipeline.yml")}} {
		if texts == nil {
			texts = yamlBlocks(t, name)
		}
		cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", readPipelines)
		cmd.Stdin = strings.NewReader(strings.Join(texts, "\n-----\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// yamlBlocks returns the YAML of a document.
func yamlBlocks(t *testing.T, name string) (texts []string) {
	for _, found := range fenced.FindAllStringSubmatch(lockertest.Read(t, name), -1) {
		if found[1] == "yaml" {
			texts = append(texts, found[2])
		}
	}
	return texts
}
